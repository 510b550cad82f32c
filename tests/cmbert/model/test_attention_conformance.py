"""Every attention backend beside eager fp32 attention: the same file on a CPU and on a GPU; what is missing is skipped.

Shapes: T tokens of the packed batch, H heads, K head width, L tokens of a segment.
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cmbert.accel import (
    ATTENTION_KERNELS,
    CUBLAS_WORKSPACES,
    apply_determinism,
    attention_backend,
    what_is_missing,
)
from cmbert.config.schema import KernelConfig
from cmbert.environment import is_installed
from cmbert.model.attention import DENSE_TOKENS, QUERY_TOKENS, STORED_TOKENS, TILE_TOKENS, PackedLayout, attend

SIDE = 64  # tokens seen to each side in a local layer: half of local_window = 128
HEADS, HEAD_WIDTH = 2, 64  # 64 as in the paper's model, and what every kernel supports
LENGTHS = {
    "around the window": [1, 63, 64, 65, 129, 130],
    "mixed": [200, 3, 17, 90, 1, 1, 257, 40],
    "one long": [DENSE_TOKENS + QUERY_TOKENS + 131],
    "long between short": [7, DENSE_TOKENS + 1, 7],
    "many short": [1 + index % 9 for index in range(150)],
    "full tiles": [TILE_TOKENS, TILE_TOKENS // 2, TILE_TOKENS // 2, TILE_TOKENS + 1],
    "with an empty segment": [5, 0, 70],
    "single token": [1],
}
TORCH_OWN = {"sdpa of torch": "torch", "flex_attention of torch": "torch.nn.attention.flex_attention"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16]
if torch.cuda.is_available():
    # When tests are collected, so before any runs: cuBLAS reads it at its first product, and never again.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES[0])


def missing(backend, device, dtype):
    """Say why a backend cannot run here, "" if it can."""
    if backend not in ATTENTION_KERNELS:
        return "" if backend == "cpu" or is_installed(TORCH_OWN[backend]) else "not in this torch"
    return what_is_missing(backend, dtype, torch.cuda.get_device_capability() if device == "cuda" else None)


ALL = [(backend, device) for backend in ("cpu", *ATTENTION_KERNELS, *TORCH_OWN) for device in DEVICES]
CASES = [(*pair, dtype) for pair in ALL for dtype in DTYPES if not missing(*pair, dtype)]


def on_each_backend(test):
    """Run `test` for every backend, device and dtype this machine has, in global and in local layers."""
    names = [f"{backend}-{device}-{str(dtype).removeprefix('torch.')}" for backend, device, dtype in CASES]
    test = pytest.mark.parametrize("side", [-1, SIDE], ids=["global", "local"])(test)
    return pytest.mark.parametrize(("backend", "device", "dtype"), CASES, ids=names)(test)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("backend", ["cpu", *ATTENTION_KERNELS, *TORCH_OWN])
def test_backend_is_held_to_the_reference_here(backend, device):
    """Its cases are those below; this one names what the machine lacks."""
    if device not in DEVICES:
        pytest.skip("no CUDA device")
    if device == "cpu" and backend in ATTENTION_KERNELS:
        assert missing(backend, device, torch.bfloat16) == "it needs a CUDA device"
        return
    lack = missing(backend, device, torch.bfloat16)
    if lack:
        pytest.skip(f"{backend}: {lack}")
    assert (backend, device, torch.bfloat16) in CASES


def tolerance(dtype):
    """Largest error, as a share of the largest value compared.

    fp32: the same sums in another order. bf16 has 8 significant bits, so a rounding moves a value by up to 2^-9 of
    itself. Scores reach about 8 here; one rounded to bf16 is off by up to 8 x 2^-9, and so is the probability, as a
    share of itself. Probabilities, values and outputs are rounded, too: 2^-6 + 3 x 2^-9 < 2^-5.
    """
    return 1e-5 if dtype == torch.float32 else 2**-5


def attend_with(backend, qkv_T3HK, lengths, side):
    """(T, 3, H, K) -> (T, H, K) by a backend that runs here."""
    device, dtype = qkv_T3HK.device, qkv_T3HK.dtype
    if backend == "sdpa of torch":
        return sdpa(qkv_T3HK, lengths, side)
    if backend == "flex_attention of torch":
        return flex(qkv_T3HK, lengths, side)
    layout = PackedLayout.build(
        torch.tensor([0, *lengths]).cumsum(0).int(),
        local_window=2 * SIDE,
        backend=attention_backend(device, dtype, backend),
        device=device,
        dtype=dtype,
    )
    return attend(qkv_T3HK, layout, side)


def sees(query_position, key_position, side):
    """Say who sees whom within a segment; -1: everybody."""
    distance = (query_position - key_position).abs()
    return distance <= side if side >= 0 else distance >= 0


def reference(qkv_T3HK, lengths, side):
    """Eager fp32 attention, segment by segment, one score matrix with an explicit window."""
    outputs = []
    for segment_L3HK in qkv_T3HK.float().split(lengths):
        position = torch.arange(len(segment_L3HK), device=segment_L3HK.device)
        query, key, value = segment_L3HK.unbind(1)
        scores_HLL = torch.einsum("qhk,shk->hqs", query, key) / math.sqrt(query.shape[-1])
        scores_HLL = scores_HLL.masked_fill(~sees(position[:, None], position, side), float("-inf"))
        outputs.append(torch.einsum("hqs,shk->qhk", scores_HLL.softmax(-1), value))
    return torch.cat(outputs)


def sdpa(qkv_T3HK, lengths, side):
    outputs = []
    for segment_L3HK in qkv_T3HK.split(lengths):
        position = torch.arange(len(segment_L3HK), device=segment_L3HK.device)
        query, key, value = (x.transpose(0, 1)[None] for x in segment_L3HK.unbind(1))
        mask = sees(position[:, None], position, side)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask) if len(position) else query
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def flex(qkv_T3HK, lengths, side):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = qkv_T3HK.device
    if device.type == "cpu" and qkv_T3HK.requires_grad:
        pytest.skip("flex_attention: no backward pass on the CPU")
    segment_T = torch.repeat_interleave(torch.tensor(lengths, device=device))
    num_tokens = len(segment_T)

    def mask(batch, head, query, key):
        return (segment_T[query] == segment_T[key]) & sees(query, key, side)

    block_mask = create_block_mask(mask, None, None, num_tokens, num_tokens, device=device)
    query, key, value = (x.transpose(0, 1)[None] for x in qkv_T3HK.unbind(1))
    kernel = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    return kernel(query, key, value, block_mask=block_mask)[0].transpose(0, 1)


def draw(lengths, dtype, device, seed=0):
    """Queries, keys and values (T, 3, H, K) whose scores reach about 8."""
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(sum(lengths), 3, HEADS, HEAD_WIDTH, generator=generator)
    return qkv.to(device, dtype)


@on_each_backend
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_output_is_the_reference(backend, device, dtype, side, lengths):
    qkv = draw(lengths, dtype, device)
    out = attend_with(backend, qkv, lengths, side)
    expected = reference(qkv, lengths, side)
    assert out.dtype == dtype
    assert_close(out.float(), expected, rtol=0, atol=tolerance(dtype) * expected.abs().max().item())


@on_each_backend
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_gradient_is_the_reference(backend, device, dtype, side, lengths):
    qkv = draw(lengths, dtype, device).requires_grad_()
    weight = draw(lengths, dtype, device, seed=1)[:, 0]
    (gradient,) = torch.autograd.grad((attend_with(backend, qkv, lengths, side) * weight).sum(), qkv)
    exact = qkv.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad((reference(exact, lengths, side) * weight).sum(), exact)
    for part, wanted in zip(gradient.float().unbind(1), expected.unbind(1), strict=True):
        # A gradient of scores is a difference of sums, so errors are larger beside it than beside the output: doubled.
        scale = max(wanted.abs().max().item(), 1.0)
        assert_close(part, wanted, rtol=0, atol=2 * tolerance(dtype) * scale)


@on_each_backend
def test_window_takes_in_64_tokens_to_each_side_and_not_the_65th(backend, device, dtype, side):
    before = draw([300], dtype, device)
    after = before.clone()
    after[150, 1:] += 4.0  # its key and value
    outputs = [attend_with(backend, qkv, [300], side) for qkv in (before, after)]
    moved = (outputs[0] != outputs[1]).flatten(1).any(1).nonzero().flatten().tolist()
    assert moved == (list(range(150 - 64, 150 + 64 + 1)) if side >= 0 else list(range(300)))


@on_each_backend
def test_segments_do_not_see_each_other(backend, device, dtype, side):
    lengths, segment = [30, 1, 180, 30, 600], slice(31, 211)
    before = draw(lengths, dtype, device)
    after = before.clone()
    after[segment] = draw([180], dtype, device, seed=1)
    outputs = [attend_with(backend, qkv, lengths, side) for qkv in (before, after)]
    moved = (outputs[0] != outputs[1]).flatten(1).any(1).nonzero().flatten().tolist()
    assert moved == list(range(segment.start, segment.stop))


@on_each_backend
def test_company_changes_nothing(backend, device, dtype, side):
    lengths = LENGTHS["mixed"]
    qkv = draw(lengths, dtype, device)
    together = attend_with(backend, qkv, lengths, side)
    alone = torch.cat([attend_with(backend, segment, [len(segment)], side) for segment in qkv.split(lengths)])
    assert_close(together, alone, rtol=0, atol=tolerance(dtype) * alone.abs().max().item())


@on_each_backend
def test_same_bits_twice(backend, device, dtype, side):
    lengths = LENGTHS["mixed"]
    qkv = draw(lengths, dtype, device)
    assert torch.equal(*(attend_with(backend, qkv, lengths, side) for _ in range(2)))


@on_each_backend
@pytest.mark.parametrize("deterministic", [False, True], ids=["as it is", "deterministic"])
def test_gradient_has_the_same_bits_twice(backend, device, dtype, side, deterministic, monkeypatch):
    """On a GPU only `kernels.deterministic` promises it: without, kernels may add up gradients in any order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES[0])  # so that none is left behind
    fills = torch.utils.deterministic.fill_uninitialized_memory
    lengths = LENGTHS["mixed"]
    qkv = draw(lengths, dtype, device).requires_grad_()
    weight = draw(lengths, dtype, device, seed=1)[:, 0]
    apply_determinism(KernelConfig(deterministic=deterministic))
    try:
        outputs = [attend_with(backend, qkv, lengths, side) for _ in range(2)]
        (one,), (other,) = (torch.autograd.grad((out * weight).sum(), qkv) for out in outputs)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills
    if deterministic or device == "cpu":
        assert torch.equal(one, other)
    assert_close(one, other, rtol=0, atol=tolerance(dtype) * one.abs().max().item())


@pytest.mark.parametrize(
    ("backend", "device", "dtype"), [case for case in CASES if case[0] not in TORCH_OWN and case[2] == torch.bfloat16]
)
def test_empty_batch(backend, device, dtype):
    qkv = draw([], dtype, device).requires_grad_()
    out = attend_with(backend, qkv, [], SIDE)
    assert out.shape == (0, HEADS, HEAD_WIDTH)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert gradient.shape == qkv.shape


@pytest.mark.parametrize("device", DEVICES)
def test_segment_too_long_to_store_its_probabilities(device):
    lengths = [STORED_TOKENS + 5]
    qkv = draw(lengths, torch.float32, device).requires_grad_()
    expected = reference(qkv, lengths, -1)
    for out in (attend_with("cpu", qkv, lengths, -1), attend_with("cpu", qkv.detach(), lengths, -1)):
        assert_close(out, expected, rtol=0, atol=1e-5)
    exact = torch.autograd.grad(expected.square().sum(), qkv)
    ours = torch.autograd.grad(attend_with("cpu", qkv, lengths, -1).square().sum(), qkv)
    largest = exact[0].abs().max().item()
    assert_close(ours, exact, rtol=0, atol=1e-5 * largest)  # sums of 2,053 terms in fp32 are off by 5e-6 of them
