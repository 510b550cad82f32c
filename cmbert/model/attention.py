"""Bidirectional attention over a packed stream of segments: global, or local within a window. No padding anywhere.

Shapes: T tokens of the packed batch, P segments, D hidden width, H heads, K head width, B blocks, Q block length (half
the local window), W = 3 Q keys seen by a block.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.accel import AttentionBackend
from cmbert.config.schema import ModelConfig
from cmbert.model.cost import STORED_TOKENS
from cmbert.model.rotary import split_heads

TILE_TOKENS = 128
"""Consecutive short segments share one dense call up to this many tokens (ours; 128 and 256 measured alike)."""

DENSE_TOKENS = 512
"""Longer segments are attended QUERY_TOKENS queries at a time, so that scores stay in cache (ours, measured)."""

QUERY_TOKENS = 256


class Tile(NamedTuple):
    """A run of whole segments attended in one dense call; `mask` is additive, None for a single segment."""

    num_tokens: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedLayout:
    """What all layers share about one packed batch. Build it once per batch with `PackedLayout.build`."""

    cu_seqlens: torch.Tensor
    """(P+1,) int32 on the model's device: where each segment starts, then T."""
    longest: int
    """No segment is longer; tokens."""
    positions: torch.Tensor
    """(T,) integers, counted from the start of each segment."""
    backend: AttentionBackend
    tiles: tuple[Tile, ...]
    """Global attention of the "cpu" backend; the tiles cover the stream in order."""
    band_mask: torch.Tensor | None
    """Local attention of the "cpu" backend: (B, 1, Q, W) additive, each block against previous, own and next block."""

    @classmethod
    def build(
        cls,
        cu_seqlens: torch.Tensor,
        position_T: torch.Tensor | None = None,
        longest: int | None = None,
        *,
        local_window: int,
        backend: AttentionBackend,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "PackedLayout":
        """Lay out segments given by `cu_seqlens` (P+1,) int32; `dtype` is that of the model's activations.

        position_T (T,), counted from each segment's start, and `longest`, which no segment exceeds: what a caller knows
        need not be found here. With both, and everything on `device`, a fused backend does not touch the host. Else the
        bounds are read there: leave them there, for a CUDA tensor costs one synchronisation.
        """
        if backend.varlen is not None and position_T is not None and longest is not None:
            return cls(cu_seqlens, longest, position_T, backend, (), None)
        cu_seqlens = cu_seqlens.cpu()
        length_P = cu_seqlens.diff().long()
        segment_T = torch.repeat_interleave(length_P)
        if position_T is None:
            position_T = torch.arange(len(segment_T)) - cu_seqlens.long()[segment_T]
        tiles: tuple[Tile, ...] = ()
        band_mask = None
        if backend.varlen is None:
            segment_T = segment_T.to(device)
            tiles = tuple(_tiles(length_P.tolist(), segment_T, dtype))
            band_mask = _band_mask(segment_T, local_window // 2, dtype)
        return cls(
            cu_seqlens=cu_seqlens.int().to(device),
            longest=int(length_P.max()) if len(length_P) else 0,
            positions=position_T.to(device),
            backend=backend,
            tiles=tiles,
            band_mask=band_mask,
        )


class Attention(nn.Module):
    """Multi-head self-attention, bias-free; a token sees its segment, or `local_window // 2` tokens to each side."""

    def __init__(self, config: ModelConfig, *, is_global: bool):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_width = config.hidden_size // config.num_heads
        self.side = -1 if is_global else config.local_window // 2
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def project(self, hidden_TD: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(T, D) -> queries, keys, values (T, 3, H, K); queries and keys rotated by `tables`."""
        return split_heads(self.Wqkv(hidden_TD), tables, self.num_heads)


def attend(qkv_T3HK: torch.Tensor, layout: PackedLayout, side: int) -> torch.Tensor:
    """Scaled dot-product attention in the segments of `layout`, at most `side` tokens away (-1: any) -> (T, H, K)."""
    query_THK, key_THK, value_THK = qkv_T3HK.unbind(1)
    if not len(qkv_T3HK):
        return value_THK  # kernels need not know a batch of no segments
    if layout.backend.varlen is not None:
        return layout.backend.varlen(query_THK, key_THK, value_THK, layout.cu_seqlens, layout.longest, side)
    key_THK = key_THK * key_THK.shape[-1] ** -0.5
    if side < 0:
        return _attend_tiles(query_THK, key_THK, value_THK, layout.tiles)
    assert layout.band_mask is not None
    return _attend_band(query_THK, key_THK, value_THK, layout.band_mask)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Dense attention over the last two dimensions, keys scaled; a masked key's probability is exactly zero."""
    scores = query @ key.transpose(-1, -2)
    if mask is not None:
        scores += mask
    return scores.softmax(dim=-1) @ value


def _attend_long(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One long segment, all (H, L, K): a stretch of queries at a time."""
    if torch.is_grad_enabled() and query.shape[1] > STORED_TOKENS:
        return F.scaled_dot_product_attention(query[None], key[None], value[None], scale=1.0)[0]
    return torch.cat([_attend(part, key, value, None) for part in query.split(QUERY_TOKENS, dim=1)], dim=1)


def _attend_tiles(
    query_THK: torch.Tensor, key_THK: torch.Tensor, value_THK: torch.Tensor, tiles: tuple[Tile, ...]
) -> torch.Tensor:
    """Global attention, tile by tile: cost follows the segments' squared lengths, calls follow T / TILE_TOKENS."""
    sizes = [tile.num_tokens for tile in tiles]
    streams = (x.transpose(0, 1).contiguous().split(sizes, dim=1) for x in (query_THK, key_THK, value_THK))
    outputs = []
    for query, key, value, tile in zip(*streams, tiles, strict=True):
        if tile.num_tokens > DENSE_TOKENS:
            outputs.append(_attend_long(query, key, value))
        else:
            outputs.append(_attend(query, key, value, tile.mask))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def _attend_band(
    query_THK: torch.Tensor, key_THK: torch.Tensor, value_THK: torch.Tensor, mask_B1QW: torch.Tensor
) -> torch.Tensor:
    """Local attention, all blocks of the stream in one batched call: cost is linear in T."""
    num_tokens, num_heads, head_width = query_THK.shape
    num_blocks, block = mask_B1QW.shape[0], mask_B1QW.shape[2]
    tail = num_blocks * block - num_tokens
    query = F.pad(query_THK, (0, 0, 0, 0, 0, tail)).view(num_blocks, block, num_heads, head_width).transpose(1, 2)

    def windows(x_THK: torch.Tensor) -> torch.Tensor:
        blocks = F.pad(x_THK, (0, 0, 0, 0, block, tail + block)).view(num_blocks + 2, block, num_heads, head_width)
        blocks = blocks.transpose(1, 2)  # before they are joined: the batched products would copy the windows again
        return torch.cat((blocks[:-2], blocks[1:-1], blocks[2:]), dim=2)

    out_BHQK = _attend(query, windows(key_THK), windows(value_THK), mask_B1QW)
    return out_BHQK.transpose(1, 2).reshape(-1, num_heads, head_width)[:num_tokens]


def _tiles(lengths: list[int], segment_T: torch.Tensor, dtype: torch.dtype) -> list[Tile]:
    """Join consecutive segments while they fit TILE_TOKENS; at least one tile, so that an empty batch needs no case."""
    sizes, counts = [0], [0]
    for length in lengths:
        if counts[-1] and sizes[-1] + length > TILE_TOKENS:
            sizes.append(0)
            counts.append(0)
        sizes[-1] += length
        counts[-1] += 1
    masks = (
        _additive(segment[:, None] == segment, dtype) if count > 1 else None
        for segment, count in zip(segment_T.split(sizes), counts, strict=True)
    )
    return [Tile(size, mask) for size, mask in zip(sizes, masks, strict=True)]


def _band_mask(segment_T: torch.Tensor, side: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, Q, W) additive mask: same segment and at most `side` tokens apart; the block length Q is `side`."""
    num_blocks = max(1, -(-len(segment_T) // side))
    # Rows past the end form a segment of their own, -1: a row that sees nothing would be NaN, also in the gradients.
    segment_BQ = F.pad(segment_T, (0, num_blocks * side - len(segment_T)), value=-1).view(num_blocks, side)
    key_segment_BW = F.pad(segment_BQ.flatten(), (side, side), value=-2).unfold(0, 3 * side, side)
    query_Q1 = torch.arange(side, device=segment_T.device)[:, None]
    distance_QW = torch.arange(-side, 2 * side, device=segment_T.device) - query_Q1
    seen_BQW = (segment_BQ[:, :, None] == key_segment_BW[:, None, :]) & (distance_QW.abs() <= side)
    return _additive(seen_BQW, dtype).unsqueeze(1)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
