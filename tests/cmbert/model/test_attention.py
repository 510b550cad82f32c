import math

import pytest
import torch
from torch.testing import assert_close

from cmbert.accel import attention_backend
from cmbert.config.schema import ModelConfig
from cmbert.model.attention import DENSE_TOKENS, TILE_TOKENS, Attention, PackedLayout
from cmbert.model.rotary import rotary_tables, rotate

CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=64)
CPU = torch.device("cpu")
LENGTHS = {
    "edges": [1, 63, 64, 65, 129, 130],
    "mixed": [200, 3, 17, 90, 1, 1, 257, 40],
    "one long": [DENSE_TOKENS + 130],
    "long between short": [7, DENSE_TOKENS + 1, 7],
    "many short": [1 + index % 9 for index in range(150)],
    "full tiles": [TILE_TOKENS, TILE_TOKENS // 2, TILE_TOKENS // 2, TILE_TOKENS + 1],
    "with an empty piece": [5, 0, 70],
    "single token": [1],
    "no pieces": [],
}


def make_layout(lengths, dtype=torch.float32):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedLayout.build(
        cu_seqlens, local_window=CONFIG.local_window, backend=attention_backend(CPU), device=CPU, dtype=dtype
    )


def make_attention(is_global, dtype=torch.float32):
    torch.manual_seed(0)
    attention = Attention(CONFIG, is_global=is_global)
    torch.nn.init.normal_(attention.Wqkv.weight, std=0.3)
    return attention.to(dtype)


def run(attention, hidden, layout):
    return attention(hidden, rotary_tables(layout.positions, attention.head_width, 10_000.0), layout)


def naive(attention, hidden, lengths):
    """Piece by piece, one dense score matrix with an explicit window."""
    outputs = []
    for piece in hidden.split(lengths):
        position = torch.arange(len(piece))
        qkv = attention.Wqkv(piece).view(len(piece), 3, attention.num_heads, attention.head_width)
        tables = rotary_tables(position, attention.head_width, 10_000.0)
        query, key, value = rotate(qkv[:, 0], tables), rotate(qkv[:, 1], tables), qkv[:, 2]
        scores = torch.einsum("qhk,shk->hqs", query, key) / math.sqrt(attention.head_width)
        if attention.side >= 0:
            scores = scores.masked_fill((position[:, None] - position).abs() > 64, float("-inf"))
        out = torch.einsum("hqs,shk->qhk", scores.float().softmax(-1).to(value.dtype), value)
        outputs.append(attention.Wo(out.flatten(1)))
    return torch.cat(outputs) if outputs else hidden


def gradients(out, attention, hidden):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return torch.autograd.grad((out * weight).sum(), [hidden, attention.Wqkv.weight, attention.Wo.weight])


@pytest.mark.parametrize("is_global", [True, False], ids=["global", "local"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_matches_naive_attention_and_its_gradients(lengths, is_global):
    attention = make_attention(is_global)
    hidden = torch.randn(sum(lengths), CONFIG.hidden_size, requires_grad=True)
    ours = run(attention, hidden, make_layout(lengths))
    assert ours.shape == hidden.shape
    if not lengths:
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(ours, attention, hidden))
        return
    expected = naive(attention, hidden, lengths)
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(gradients(ours, attention, hidden), gradients(expected, attention, hidden), strict=True):
        assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_global", [True, False], ids=["global", "local"])
def test_bfloat16_stays_near_fp32(is_global):
    lengths = LENGTHS["mixed"]
    hidden = torch.randn(sum(lengths), CONFIG.hidden_size).bfloat16()
    attention = make_attention(is_global, torch.bfloat16)
    ours = run(attention, hidden, make_layout(lengths, torch.bfloat16))
    expected = naive(attention.float(), hidden.float(), lengths)
    # bf16 keeps 8 bits: q, k, scores, probabilities, values and output are each rounded by up to 2^-9 of their size.
    assert (ours.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_window_reaches_64_tokens_and_not_65():
    attention = make_attention(is_global=False)
    hidden = torch.randn(200, CONFIG.hidden_size)
    layout = make_layout([200])
    before = run(attention, hidden, layout)
    changed = hidden.clone()
    changed[100] += 1.0
    is_moved = (run(attention, changed, layout) != before).any(dim=1)
    assert is_moved.nonzero().flatten().tolist() == list(range(36, 165))


def test_global_attention_reaches_the_whole_piece_and_no_further():
    attention = make_attention(is_global=True)
    hidden = torch.randn(240, CONFIG.hidden_size)
    layout = make_layout([30, 180, 30])
    before = run(attention, hidden, layout)
    changed = hidden.clone()
    changed[40] += 1.0
    is_moved = (run(attention, changed, layout) != before).any(dim=1)
    assert is_moved.nonzero().flatten().tolist() == list(range(30, 210))


def test_layout_restarts_positions_at_each_piece():
    layout = make_layout([3, 1, 2])
    assert layout.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.longest == 3
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 6]


def test_tiles_bound_the_number_of_calls():
    layout = make_layout([10] * 400)
    assert len(layout.tiles) <= math.ceil(4000 / (TILE_TOKENS - 10))
    assert sum(tile.num_tokens for tile in layout.tiles) == 4000


@pytest.mark.parametrize("is_global", [True, False], ids=["global", "local"])
def test_is_deterministic(is_global):
    lengths = LENGTHS["mixed"]
    attention = make_attention(is_global)
    hidden = torch.randn(sum(lengths), CONFIG.hidden_size, requires_grad=True)
    runs = [run(attention, hidden, make_layout(lengths)) for _ in range(2)]
    assert torch.equal(*runs)
    for first, second in zip(*(gradients(out, attention, hidden) for out in runs), strict=True):
        assert torch.equal(first, second)
