"""Which attention backend is chosen, and what is refused."""

import logging

import pytest
import torch

from cmbert.accel import attention_backend
from cmbert.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_choices():
    attention_backend.cache_clear()


def test_auto_on_cpu_is_plain_torch_and_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="cmbert.accel"):
        backends = [attention_backend(CPU), attention_backend(CPU)]
    assert backends[0].name == "cpu"
    assert backends[0].varlen is None
    assert backends[0] is backends[1]
    assert [record.getMessage() for record in caplog.records] == ["attention backend on cpu: cpu (asked for auto)"]


@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen", "flex"])
def test_backend_that_cannot_run_here_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        attention_backend(CPU, name)


def test_auto_on_cuda_prefers_what_is_installed(monkeypatch):
    for installed, expected in [
        ({"flash_attn", "torch.nn.attention.varlen"}, "flash_attn"),
        ({"torch.nn.attention.varlen"}, "torch_varlen"),
        (set(), "cpu"),
    ]:
        attention_backend.cache_clear()
        monkeypatch.setattr("cmbert.accel._is_installed", installed.__contains__)
        backend = attention_backend(torch.device("cuda"))
        assert backend.name == expected
        assert (backend.varlen is None) == (expected == "cpu")
