"""The masked cross-entropy beside torch's own, and what it must not keep."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from cmbert.model import loss as loss_module
from cmbert.model.loss import chunk_loss, fusible_chunk_loss, masked_cross_entropy

WIDTH, VOCABULARY = 24, 320


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss_module, "CPU_CHUNK_BYTES", 16 * VOCABULARY * 4)  # 16 positions


def draw(num_positions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = [(num_positions, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return hidden, weight, bias, torch.randint(VOCABULARY, (num_positions,), generator=generator)


def whole(hidden, weight, bias, target):
    logits = F.linear(hidden, weight, bias).float()
    losses = F.cross_entropy(logits, target, reduction="none")
    return losses.sum(), (logits.argmax(-1) == target).sum(), losses


def with_chunks_by(function):
    return lambda *inputs: masked_cross_entropy(*inputs, function)


@pytest.mark.parametrize("function", [chunk_loss, fusible_chunk_loss])
@pytest.mark.parametrize("num_positions", [0, 1, 16, 17, 100])
def test_loss_and_gradients_are_those_of_cross_entropy(num_positions, function):
    entropy = with_chunks_by(function)
    hidden, weight, bias, target = draw(num_positions)
    if num_positions:
        target[0] = F.linear(hidden[0], weight, bias).argmax()
    ours, theirs = (function(hidden, weight, bias, target) for function in (entropy, whole))
    assert_close(ours[0], theirs[0])
    assert_close(ours[2], theirs[2].detach())
    assert not ours[2].requires_grad
    assert ours[1].dtype == torch.int64
    assert ours[1] == theirs[1] >= min(num_positions, 1)
    gradients = [torch.autograd.grad(out[0] * 0.37, [hidden, weight, bias]) for out in (ours, theirs)]
    for got, wanted in zip(*gradients, strict=True):
        assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert_close(entropy(hidden, weight, bias, target), ours)


@pytest.mark.parametrize("function", [chunk_loss, fusible_chunk_loss])
def test_of_equal_scores_none_is_first(function):
    hidden, weight, bias, _ = draw(3)
    best = F.linear(hidden, weight, bias).argmax(-1)
    with torch.no_grad():
        weight[(best[0] + 1) % VOCABULARY] = weight[best[0]]
        bias[(best[0] + 1) % VOCABULARY] = bias[best[0]]
    assert with_chunks_by(function)(hidden, weight, bias, best)[1] == 3 - (best == best[0]).sum()


@pytest.mark.parametrize("function", [chunk_loss, fusible_chunk_loss])
def test_bfloat16_is_as_near_to_fp32_as_torchs_own(function):
    exact = draw(100)
    wanted = torch.autograd.grad(whole(*exact)[0], exact[:3])
    rounded = draw(100, torch.bfloat16)
    errors = []
    for entropy in (with_chunks_by(function), whole):
        loss, *_ = entropy(*rounded)
        assert loss.dtype == torch.float32
        found = torch.autograd.grad(loss, rounded[:3])
        errors.append([(got.float() - want).norm() / want.norm() for got, want in zip(found, wanted, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.1 * theirs + 2**-9


class LargestFp32(TorchDispatchMode):
    """Remembers the most values of any fp32 tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.most = max(self.most, tensor.numel())
        return out


def test_logits_are_never_whole_in_fp32():
    inputs = draw(100, torch.bfloat16)
    with LargestFp32() as seen:
        masked_cross_entropy(*inputs)[0].backward()
    assert seen.most <= 16 * VOCABULARY
    with LargestFp32() as seen:
        whole(*inputs)[0].backward()
    assert seen.most == 100 * VOCABULARY  # so the measurement can see it


def test_same_bits_twice():
    hidden, weight, bias, target = draw(100, torch.bfloat16)
    runs = []
    for _ in range(2):
        loss, *_ = masked_cross_entropy(hidden, weight, bias, target)
        runs.append([loss, *torch.autograd.grad(loss, [hidden, weight, bias])])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_a_second_backward_is_refused():
    hidden, weight, bias, target = draw(5)
    loss, *_ = masked_cross_entropy(hidden, weight, bias, target)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
