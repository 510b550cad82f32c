"""Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of ModernBERT's weights.

Shapes: T tokens, H heads, K head width, F = K / 2 frequencies.
"""

import torch


def rotary_tables(position_T: torch.Tensor, head_width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every token's angles, each (T, F) fp32.

    Computed for each batch instead of kept in a buffer: `module.bfloat16()` would round a buffer, and at position 8,191
    a bf16 angle is off by up to 16 radians.
    """
    exponent_F = torch.arange(0, head_width, 2, dtype=torch.float32, device=position_T.device) / head_width
    angle_TF = position_T.float().unsqueeze(1) * (1.0 / base**exponent_F)
    return angle_TF.cos(), angle_TF.sin()


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn each (x[f], x[f + F]) pair of `x` (T, ..., K) by its token's angle, in fp32; same shape and dtype as `x`."""
    cos, sin = (table.view(-1, *[1] * (x.ndim - 2), table.shape[1]) for table in tables)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class _RotateInPlace(torch.autograd.Function):
    """`rotate` written over the queries and keys of (T, 3, H, K): the backward pass needs the angles alone."""

    @staticmethod
    def forward(ctx, qkv, cos, sin, num_heads):  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(cos, sin)
        ctx.num_heads = num_heads
        ctx.mark_dirty(qkv)
        return _turn(qkv, cos, sin, num_heads)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def,override]
        cos, sin = ctx.saved_tensors
        # In place, too: the gradient was put together from those of queries, keys and values, for us alone.
        return _turn(gradient.contiguous(), cos, -sin, ctx.num_heads), None, None, None


def _turn(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    num_tokens, num_frequencies = cos.shape
    query_key = qkv.view(num_tokens, 3, num_heads, 2 * num_frequencies)[:, :2]
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second = query_key[..., :num_frequencies].float(), query_key[..., num_frequencies:].float()
    turned_first, turned_second = first * cos - second * sin, second * cos + first * sin
    query_key[..., :num_frequencies] = turned_first  # only now: in fp32 `first` is what this overwrites
    query_key[..., num_frequencies:] = turned_second
    return qkv


def split_heads(qkv: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], num_heads: int) -> torch.Tensor:
    """Projected (T, 3 H K) -> (T, 3, H, K), queries and keys rotated, in one buffer; eager code overwrites `qkv`."""
    shape = (qkv.shape[0], 3, num_heads, qkv.shape[1] // (3 * num_heads))
    if not torch.compiler.is_compiling():
        return _RotateInPlace.apply(qkv, *tables, num_heads).view(shape)
    qkv_T3HK = qkv.view(shape)
    return torch.cat((rotate(qkv_T3HK[:, :2], tables), qkv_T3HK[:, 2:]), dim=1)
