"""Which kernels are chosen, what is refused, and how other people's kernels are called."""

import importlib
import inspect
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn import attention as torch_attention

from cmbert import accel
from cmbert.accel import ATTENTION_KERNELS, apply_determinism, attention_backend, norm_function, prepare_kernels
from cmbert.config.schema import KernelConfig
from cmbert.environment import is_installed
from cmbert.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def forget_choices():
    accel._choose.cache_clear()
    yield
    accel._choose.cache_clear()


@pytest.fixture(autouse=True)
def flags_of_torch():
    """Leave torch and the environment as they were."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


FLASH_ATTN_3 = """
import torch
LIBRARY = torch.library.Library("flash_attn_3", "DEF")
for name in {operators}:
    LIBRARY.define(name + "(Tensor q) -> Tensor")
"""
VARLEN = "def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, {rest}): pass\n"
STAND_INS = {
    "FA2": ("flash_attn/__init__.py", "def flash_attn_varlen_func(): pass\n"),
    "FA2 for another torch": ("flash_attn/__init__.py", "raise ImportError('undefined symbol: _ZN3c10')\n"),
    "FA3": ("flash_attn_interface.py", FLASH_ATTN_3.format(operators=["fwd", "bwd"])),
    "FA3 without backward": ("flash_attn_interface.py", FLASH_ATTN_3.format(operators=["fwd"])),
    "FA4": ("flash_attn/cute/interface.py", "def flash_attn_varlen_func(): pass\n"),
}
"""Name -> (file, text) of modules as the wheels hold them; FA4's has no flash_attn/__init__.py."""

VARLENS = {
    "2.10": "is_causal=False, return_aux=None",  # torch 2.10.0, torch/nn/attention/varlen.py
    "2.11": "*, return_aux=None, scale=None, window_size=(-1, -1)",  # torch 2.11.0
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """(stand-ins installed, compute capability, torch) -> pretend so; what is found is really imported."""

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]

    for name in loaded():  # real ones, which come back after the test
        monkeypatch.delitem(sys.modules, name)

    def forget():
        for name in loaded():
            if library := getattr(sys.modules.pop(name), "LIBRARY", None):
                library._destroy()  # a second one of the name would be an error
        importlib.invalidate_caches()

    def pretend(installed, capability, version="2.11"):
        for name in installed:
            path = tmp_path / STAND_INS[name][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STAND_INS[name][1], encoding="utf-8")
        varlen = ModuleType("torch.nn.attention.varlen")
        exec(VARLEN.format(rest=VARLENS[version]), varlen.__dict__)
        monkeypatch.setitem(sys.modules, varlen.__name__, varlen)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *(folder for folder in sys.path if not holds(folder))])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        forget()

    def holds(folder):  # a real one of this machine would be found, too
        return any((Path(folder) / name).exists() for name in ("flash_attn", "flash_attn_interface.py"))

    yield pretend
    if torch_attention.current_flash_attention_impl():
        torch_attention.restore_flash_attention_impl()
    forget()


def test_auto_on_cpu_is_plain_torch_which_nobody_need_be_told(caplog):
    with caplog.at_level(logging.INFO, logger="cmbert.accel"):
        backends = [attention_backend(CPU, BF16), attention_backend(CPU, BF16)]
    assert backends[0].name == "cpu"
    assert backends[0].varlen is None
    assert backends[0] is backends[1]
    assert caplog.records == []


@pytest.mark.parametrize("name", ATTENTION_KERNELS)
def test_kernel_that_cannot_run_here_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"kernels.attention: '{name}' cannot run on cpu: it needs a CUDA device"):
        attention_backend(CPU, BF16, name)


def test_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'flash' is unknown; choose one of auto, cpu, flash_attn_3, flash_attn"):
        attention_backend(CPU, BF16, "flash")


ALL_OF_THEM = ("FA2", "FA3")
TURING, AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_50 = (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(
    ("installed", "version", "capability", "expected"),
    [
        (ALL_OF_THEM, "2.11", TURING, "cpu"),
        (ALL_OF_THEM, "2.11", AMPERE, "flash_attn"),
        (ALL_OF_THEM, "2.11", ADA, "flash_attn"),
        (ALL_OF_THEM, "2.11", HOPPER, "flash_attn_3"),
        (ALL_OF_THEM, "2.11", BLACKWELL, "flash_attn"),
        (ALL_OF_THEM, "2.11", GEFORCE_50, "flash_attn"),
        (("FA3",), "2.11", BLACKWELL, "torch_varlen"),
        (("FA3 without backward",), "2.11", HOPPER, "torch_varlen"),
        (("FA2",), "2.11", HOPPER, "flash_attn"),
        (("FA2 for another torch",), "2.11", HOPPER, "torch_varlen"),
        (("FA4",), "2.11", BLACKWELL, "torch_varlen"),
        (("FA4",), "2.10", BLACKWELL, "cpu"),
        ((), "2.11", TURING, "cpu"),
        ((), "2.11", AMPERE, "torch_varlen"),
        ((), "2.11", GEFORCE_50, "torch_varlen"),
        ((), "2.10", HOPPER, "cpu"),
        (("FA3",), "2.10", HOPPER, "cpu"),  # it is called through torch's varlen_attn
    ],
)
def test_auto_on_cuda_takes_the_first_that_can_run(machine, installed, version, capability, expected):
    machine(installed, capability, version)
    backend = attention_backend(GPU, BF16)
    assert backend.name == expected
    assert (backend.varlen is None) == (expected == "cpu")
    accel._choose.cache_clear()
    assert attention_backend(GPU, torch.float32).name == "cpu"


@pytest.mark.parametrize(
    ("installed", "version", "capability", "name", "lack"),
    [
        ((), "2.11", HOPPER, "flash_attn", "No module named 'flash_attn' (slurm/install_kernels.sh"),
        ((), "2.11", HOPPER, "flash_attn_3", "No module named 'flash_attn_interface' (slurm/install_kernels.sh"),
        (("FA4",), "2.11", HOPPER, "flash_attn", "has no flash_attn_varlen_func: this is FlashAttention 4 alone"),
        (("FA2 for another torch",), "2.11", HOPPER, "flash_attn", "cannot be imported: undefined symbol: _ZN3c10"),
        (("FA3 without backward",), "2.11", HOPPER, "flash_attn_3", "registers no operator flash_attn_3::bwd"),
        (ALL_OF_THEM, "2.11", AMPERE, "flash_attn_3", "not made for compute capability 8.0"),
        (ALL_OF_THEM, "2.11", TURING, "flash_attn", "not made for compute capability 7.5"),
        ((), "2.11", TURING, "torch_varlen", "not made for compute capability 7.5"),
        ((), "2.10", HOPPER, "torch_varlen", "varlen_attn has no parameter window_size; install torch 2.11 or newer"),
    ],
)
def test_a_kernel_by_name_says_what_it_lacks_and_auto_says_it_too(
    machine, caplog, installed, version, capability, name, lack
):
    machine(installed, capability, version)
    with pytest.raises(ConfigError, match=re.escape(lack)) as found:
        attention_backend(GPU, BF16, name)
    assert "\n" not in str(found.value)
    with caplog.at_level(logging.INFO, logger="cmbert.accel"):
        attention_backend(GPU, BF16)
    (record,) = caplog.records
    assert f"; not {name}: " in record.getMessage()
    assert lack in record.getMessage()


def test_a_kernel_by_name_does_not_look_at_the_others(machine):
    machine(("FA2 for another torch",), HOPPER)
    assert attention_backend(GPU, BF16, "torch_varlen").name == "torch_varlen"
    assert "flash_attn" not in sys.modules


def test_flash_attention_3_runs_in_torch_until_another_is_chosen(machine):
    machine(("FA3", "FA2"), HOPPER)
    current = torch_attention.current_flash_attention_impl
    for name in ("torch_varlen", "flash_attn_3", "auto", "flash_attn", "flash_attn_3", "cpu"):
        for _ in range(2):  # as in every forward pass; the second time from the cache
            attention_backend(GPU, BF16, name)
            assert current() == ("FA3" if name in ("flash_attn_3", "auto") else None)
    attention_backend(GPU, BF16, "flash_attn_3")
    attention_backend(CPU, BF16)
    assert current() == "FA3"  # nothing that a CPU does can disturb it


def banded(query, key, value, cu_q, cu_k, max_q, max_k, *, window_size, deterministic=None):
    """Stands in for a varlen kernel: the parameters of flash_attn_varlen_func that we use, by their names there."""
    assert torch.equal(cu_q, cu_k)
    assert cu_q.dtype == torch.int32
    assert max_q == max_k == cu_q.diff().max()
    outputs = []
    for segment in zip(*(x.split(cu_q.diff().tolist()) for x in (query, key, value)), strict=True):
        position = torch.arange(len(segment[0]))
        offset = position - position[:, None]
        left, right = (size if size >= 0 else len(position) for size in window_size)
        heads_first = [x.transpose(0, 1) for x in segment]
        seen = (offset >= -left) & (offset <= right)
        outputs.append(F.scaled_dot_product_attention(*heads_first, attn_mask=seen).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("side", [-1, 2])
def test_flash_attention_2_is_called_as_documented(side, monkeypatch):
    given = []

    def flash_attn_varlen_func(*args, **kwargs):
        given.append(kwargs["deterministic"])
        return banded(*args, **kwargs)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    query, key, value = torch.randn(3, 9, 2, 8)
    bounds = torch.tensor([0, 6, 9], dtype=torch.int32)
    for deterministic in (False, True):
        apply_determinism(KernelConfig(deterministic=deterministic))
        found = ATTENTION_KERNELS["flash_attn"].call(query, key, value, bounds, 6, side)
        assert torch.equal(found, banded(query, key, value, bounds, bounds, 6, 6, window_size=(side, side)))
    assert given == [False, True]


def test_torch_varlen_has_the_parameters_we_use(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    signature = inspect.signature(varlen.varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **kwargs: signature.bind(*args, **kwargs).arguments)
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    assert ATTENTION_KERNELS["flash_attn_3"].call is ATTENTION_KERNELS["torch_varlen"].call
    bound = ATTENTION_KERNELS["torch_varlen"].call("query", "key", "value", bounds, 9, 64)
    assert [bound[name] for name in ("query", "key", "value", "max_q", "max_k")] == ["query", "key", "value", 9, 9]
    assert bound["cu_seq_q"] is bound["cu_seq_k"] is bounds
    assert bound["window_size"] == (64, 64)


def test_apex_norm_is_called_as_documented_and_refused_when_absent(monkeypatch):
    if not is_installed("apex.normalization"):
        with pytest.raises(ConfigError, match=r"kernels\.norm: 'apex': NVIDIA apex is not installed"):
            prepare_kernels(KernelConfig(norm="apex"), CPU, BF16)
    monkeypatch.setattr(accel, "is_installed", lambda module: True)

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6):
        return F.rms_norm(input, normalized_shape, weight, eps)

    fake = SimpleNamespace(fused_rms_norm_affine=fused_rms_norm_affine)
    monkeypatch.setitem(sys.modules, "apex.normalization.fused_layer_norm", fake)
    hidden, weight = torch.randn(5, 8), torch.randn(8)
    assert torch.equal(*(norm_function(name)(hidden, weight, 1e-3) for name in ("apex", "torch")))


def test_determinism_is_what_torch_and_cublas_read(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    apply_determinism(KernelConfig())
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    apply_determinism(KernelConfig(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_workspace_that_lets_cublas_vary_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    apply_determinism(KernelConfig(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's choice is as good
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match=r"kernels\.deterministic: CUBLAS_WORKSPACE_CONFIG=:0:0 lets cuBLAS vary"):
        apply_determinism(KernelConfig(deterministic=True))
