"""The pre-norm encoder layer. Module names follow ModernBERT (arXiv 2412.13663), so weights move without a map.

Shapes: T tokens of the packed batch, D hidden width, I width of the GeGLU product.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.accel import compiled, norm_function
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.model.attention import Attention, PackedLayout, attend


class RMSNorm(nn.RMSNorm):
    """Bias-free RMSNorm, computed by torch or by apex."""

    def __init__(self, config: ModelConfig, kernels: KernelConfig):
        super().__init__(config.hidden_size, eps=config.norm_eps)
        self.function = norm_function(kernels.norm)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        assert self.eps is not None
        return self.function(hidden, self.weight, self.eps)


def make_norm(config: ModelConfig, kernels: KernelConfig) -> nn.Module:
    """Bias-free norm over the hidden width: RMSNorm (the paper) or LayerNorm (stock ModernBERT)."""
    if config.norm == "rmsnorm":
        return RMSNorm(config, kernels)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


class GatedMLP(nn.Module):
    """GeGLU feed-forward (Shazeer, arXiv 2002.05202), bias-free."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        input_TI, gate_TI = self.Wi(hidden_TD).chunk(2, dim=-1)
        return self.Wo(F.gelu(input_TI) * gate_TI)


class LayerParts(NamedTuple):
    """A layer, and its two stretches around attention for a backend that cannot be compiled with them.

    All shapes are those of the step before, but for the number of segments, which nothing but attention reads.
    """

    whole: "Callable[[EncoderLayer, torch.Tensor, tuple[torch.Tensor, torch.Tensor], PackedLayout], torch.Tensor]"
    project: "Callable[[EncoderLayer, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]"
    finish: "Callable[[EncoderLayer, torch.Tensor, torch.Tensor], torch.Tensor]"


def layer_parts(compile: bool) -> LayerParts:
    """Return the parts that all layers of a model share, compiled once for all of them if `compile`."""
    if not compile:
        return LayerParts(EncoderLayer.whole, EncoderLayer.project, EncoderLayer.finish)
    return LayerParts(
        compiled(EncoderLayer.whole, dynamic=False),
        compiled(EncoderLayer.project, dynamic=False),
        compiled(EncoderLayer.finish, dynamic=False),
    )


class EncoderLayer(nn.Module):
    """Attention, then feed-forward, each on the normed residual stream and added back to it."""

    def __init__(self, config: ModelConfig, index: int, kernels: KernelConfig, parts: LayerParts):
        super().__init__()
        self.is_global = index % config.global_every == 0
        # The embeddings are normed already, so layer 0 does not norm them again (ModernBERT).
        self.attn_norm = make_norm(config, kernels) if index > 0 else nn.Identity()
        self.attn = Attention(config, is_global=self.is_global)
        self.mlp_norm = make_norm(config, kernels)
        self.mlp = GatedMLP(config)
        self.parts = parts

    def project(self, hidden_TD: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(T, D) -> queries, keys, values (T, 3, H, K); `tables` are the rotary tables of this layer's base."""
        return self.attn.project(self.attn_norm(hidden_TD), tables)

    def finish(self, hidden_TD: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
        """Residual stream and attention's output, both (T, D) -> residual stream (T, D)."""
        hidden_TD = hidden_TD + self.attn.Wo(attended_TD)
        return hidden_TD + self.mlp(self.mlp_norm(hidden_TD))

    def whole(
        self, hidden_TD: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], layout: PackedLayout
    ) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        return self.finish(hidden_TD, attend(self.project(hidden_TD, tables), layout, self.attn.side).flatten(1))

    def forward(
        self, hidden_TD: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], layout: PackedLayout
    ) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        if layout.backend.varlen is not None:
            return self.parts.whole(self, hidden_TD, tables, layout)
        qkv_T3HK = self.parts.project(self, hidden_TD, tables)
        return self.parts.finish(self, hidden_TD, attend(qkv_T3HK, layout, self.attn.side).flatten(1))
