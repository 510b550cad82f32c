"""Which kernels are chosen, what is refused, and how other people's kernels are called."""

import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cmbert import accel
from cmbert.accel import ATTENTION_KERNELS, attention_backend, check_kernels, norm_function
from cmbert.config.schema import KernelConfig
from cmbert.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HOPPER, AMPERE = (9, 0), (8, 0)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def forget_choices():
    accel._choose.cache_clear()
    yield
    accel._choose.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """(installed modules, compute capability) -> pretend so."""

    def pretend(installed, capability):
        accel._choose.cache_clear()
        monkeypatch.setattr(accel, "is_installed", installed.__contains__)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_auto_on_cpu_is_plain_torch_and_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="cmbert.accel"):
        backends = [attention_backend(CPU, BF16), attention_backend(CPU, BF16)]
    assert backends[0].name == "cpu"
    assert backends[0].varlen is None
    assert backends[0] is backends[1]
    assert [record.getMessage() for record in caplog.records] == ["attention on cpu: cpu (asked for auto)"]


@pytest.mark.parametrize("name", ATTENTION_KERNELS)
def test_kernel_that_cannot_run_here_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"kernels.attention: '{name}' cannot run on cpu: it needs a CUDA device"):
        attention_backend(CPU, BF16, name)


def test_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'flash' is unknown; choose one of auto, cpu, flash_attn_3, flash_attn"):
        attention_backend(CPU, BF16, "flash")


EVERYTHING = {kernel.module for kernel in ATTENTION_KERNELS.values()}


@pytest.mark.parametrize(
    ("installed", "capability", "dtype", "expected"),
    [
        (EVERYTHING, HOPPER, BF16, "flash_attn_3"),
        (EVERYTHING, AMPERE, BF16, "flash_attn"),
        (EVERYTHING - {"flash_attn_interface"}, HOPPER, BF16, "flash_attn"),
        ({"torch.nn.attention.varlen"}, HOPPER, BF16, "torch_varlen"),
        (set(), HOPPER, BF16, "cpu"),
        (EVERYTHING, HOPPER, torch.float32, "cpu"),
    ],
)
def test_auto_on_cuda_takes_the_first_that_can_run(machine, installed, capability, dtype, expected):
    machine(installed, capability)
    backend = attention_backend(GPU, dtype)
    assert backend.name == expected
    assert (backend.varlen is None) == (expected == "cpu")


def test_a_kernel_by_name_says_what_it_lacks(machine):
    machine(EVERYTHING - {"flash_attn"}, AMPERE)
    for name, lack in [("flash_attn_3", "compute capability 8.0"), ("flash_attn", "flash_attn is not installed")]:
        with pytest.raises(ConfigError, match=lack):
            attention_backend(GPU, BF16, name)
    with pytest.raises(ConfigError, match=r"not torch\.float32"):
        attention_backend(GPU, torch.float32, "torch_varlen")


def banded(query, key, value, cu_q, cu_k, max_q, max_k, *, window_size, deterministic=None):
    """Stands in for a varlen kernel: the parameters of flash_attn_varlen_func that we use, by their names there."""
    assert torch.equal(cu_q, cu_k)
    assert cu_q.dtype == torch.int32
    assert max_q == max_k == cu_q.diff().max()
    outputs = []
    for piece in zip(*(x.split(cu_q.diff().tolist()) for x in (query, key, value)), strict=True):
        position = torch.arange(len(piece[0]))
        offset = position - position[:, None]
        left, right = (size if size >= 0 else len(position) for size in window_size)
        heads_first = [x.transpose(0, 1) for x in piece]
        seen = (offset >= -left) & (offset <= right)
        outputs.append(F.scaled_dot_product_attention(*heads_first, attn_mask=seen).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("side", [-1, 2])
@pytest.mark.parametrize("name", ["flash_attn_3", "flash_attn"])
def test_flash_attention_is_called_as_documented(name, side, monkeypatch):
    fake = SimpleNamespace(flash_attn_varlen_func=banded)
    monkeypatch.setitem(sys.modules, ATTENTION_KERNELS[name].module, fake)
    query, key, value = torch.randn(3, 9, 2, 8)
    bounds = torch.tensor([0, 6, 9], dtype=torch.int32)
    found = ATTENTION_KERNELS[name].call(query, key, value, bounds, 6, side)
    assert torch.equal(found, banded(query, key, value, bounds, bounds, 6, 6, window_size=(side, side)))
    fake.flash_attn_varlen_func = lambda *args, **kwargs: (banded(*args, **kwargs), "log-sum-exp")
    if name == "flash_attn_3":  # its early versions
        assert torch.equal(ATTENTION_KERNELS[name].call(query, key, value, bounds, 6, side), found)


def test_torch_varlen_has_the_parameters_we_use(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    signature = inspect.signature(varlen.varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **kwargs: signature.bind(*args, **kwargs).arguments)
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    bound = ATTENTION_KERNELS["torch_varlen"].call("query", "key", "value", bounds, 9, 64)
    assert [bound[name] for name in ("query", "key", "value", "max_q", "max_k")] == ["query", "key", "value", 9, 9]
    assert bound["cu_seq_q"] is bound["cu_seq_k"] is bounds
    assert bound["window_size"] == (64, 64)


def test_apex_norm_is_called_as_documented_and_refused_when_absent(monkeypatch):
    if not accel.is_installed("apex.normalization"):
        with pytest.raises(ConfigError, match=r"kernels\.norm: 'apex': NVIDIA apex is not installed"):
            check_kernels(KernelConfig(norm="apex"), CPU, BF16)
    monkeypatch.setattr(accel, "is_installed", lambda module: True)

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6):
        return F.rms_norm(input, normalized_shape, weight, eps)

    fake = SimpleNamespace(fused_rms_norm_affine=fused_rms_norm_affine)
    monkeypatch.setitem(sys.modules, "apex.normalization.fused_layer_norm", fake)
    hidden, weight = torch.randn(5, 8), torch.randn(8)
    assert torch.equal(*(norm_function(name)(hidden, weight, 1e-3) for name in ("apex", "torch")))
