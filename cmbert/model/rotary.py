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
