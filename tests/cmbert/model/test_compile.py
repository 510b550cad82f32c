"""Compiled code: the same numbers as eager code, and no compilation after the first step."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from cmbert import accel
from cmbert.config.schema import KernelConfig
from cmbert.errors import ConfigError
from cmbert.model import encoder
from tests.cmbert.fused import FUSED

COMPILE = KernelConfig(compile=True)
STEPS = [[70, 58], [128], [1] * 20 + [108], [40, 40, 40, 8], [127, 1], [5, 123]]  # 128 row positions each
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def forget_compilations():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", "fused"])
def attention(request, monkeypatch):
    """Plain torch, around which a layer is compiled, or one operator, with which it is compiled as a whole."""
    if request.param == "fused":
        monkeypatch.setattr(encoder, "attention_backend", lambda device, dtype, requested: FUSED)


def step(model, pack, lengths, num_masked):
    input_ids, cu_seqlens = pack(lengths)
    model.zero_grad()
    positions = torch.arange(0, 2 * num_masked, 2)
    loss, correct, each = model(input_ids, cu_seqlens, positions, input_ids[positions])
    loss.backward()
    return [loss.detach(), correct, each, *(parameter.grad.clone() for parameter in model.parameters())]


@needs_compiler
@pytest.mark.parametrize(
    ("norm", "share"),
    [
        ("rmsnorm", 0.5),
        ("layernorm", 0.0),
        pytest.param("rmsnorm", 0.0, marks=pytest.mark.slow),
        pytest.param("layernorm", 0.5, marks=pytest.mark.slow),
    ],
)
def test_equals_eager(make_model, pack, norm, share, attention):
    kernels = KernelConfig(compile=True, activation_checkpoint_fraction=share)
    eager = step(make_model(norm=norm), pack, STEPS[0], 20)
    ours = step(make_model(kernels, norm=norm), pack, STEPS[0], 20)
    for got, wanted in zip(ours, eager, strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("share", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_the_first_steps(make_model, pack, share, attention):
    model = make_model(KernelConfig(compile=True, activation_checkpoint_fraction=share)).bfloat16()
    step(model, pack, STEPS[0], 20)
    step(model, pack, STEPS[1], 21)  # the number of masked positions becomes a variable
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths, num_masked in zip(STEPS[2:], (2, 19, 33, 60), strict=True):
            step(model, pack, lengths, num_masked)
        with pytest.raises(torch._dynamo.exc.RecompileError):
            step(model, pack, [129], 20)  # so the count can fail


@needs_compiler
def test_same_bits_twice(make_model, pack, attention):
    runs = [step(make_model(COMPILE).bfloat16(), pack, STEPS[0], 20) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_without_a_compiler_it_is_refused(make_model, monkeypatch):
    monkeypatch.setattr(accel.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"kernels.compile: no C\+\+ compiler"):
        make_model(COMPILE)
