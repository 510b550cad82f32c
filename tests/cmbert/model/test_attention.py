"""What all layers share about a packed batch; the attention itself is in test_attention_conformance.py."""

import math

import torch

from cmbert.accel import AttentionBackend
from cmbert.model.attention import TILE_TOKENS, PackedLayout

LAYOUT = {"local_window": 128, "device": torch.device("cpu"), "dtype": torch.float32}


def make_layout(lengths):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedLayout.build(cu_seqlens, backend=AttentionBackend("cpu", None), **LAYOUT)


def test_layout_restarts_positions_at_each_segment():
    layout = make_layout([3, 1, 2])
    assert layout.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.longest == 3
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 6]


def test_tiles_bound_the_number_of_calls():
    layout = make_layout([10] * 400)
    assert len(layout.tiles) <= math.ceil(4000 / (TILE_TOKENS - 10))
    assert sum(tile.num_tokens for tile in layout.tiles) == 4000
