"""The pre-norm encoder layer. Module names follow ModernBERT (arXiv 2412.13663), so weights move without a map.

Shapes: T tokens of the packed batch, D hidden width, I width of the GeGLU product.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.config.schema import ModelConfig
from cmbert.model.attention import Attention, PackedLayout


def make_norm(config: ModelConfig) -> nn.Module:
    """Bias-free norm over the hidden width: RMSNorm (the paper) or LayerNorm (stock ModernBERT)."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
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


class EncoderLayer(nn.Module):
    """Attention, then feed-forward, each on the normed residual stream and added back to it."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.is_global = index % config.global_every == 0
        # The embeddings are normed already, so layer 0 does not norm them again (ModernBERT).
        self.attn_norm = make_norm(config) if index > 0 else nn.Identity()
        self.attn = Attention(config, is_global=self.is_global)
        self.mlp_norm = make_norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self, hidden_TD: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], layout: PackedLayout
    ) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        hidden_TD = hidden_TD + self.attn(self.attn_norm(hidden_TD), tables, layout)
        return hidden_TD + self.mlp(self.mlp_norm(hidden_TD))
