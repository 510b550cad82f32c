"""Embeddings and the stack of layers.

Shapes: T tokens of the packed batch, P pieces, D hidden width.
"""

import torch
from torch import nn

from cmbert.accel import attention_backend
from cmbert.config.schema import ModelConfig
from cmbert.model.attention import PackedLayout
from cmbert.model.layers import EncoderLayer, make_norm
from cmbert.model.rotary import rotary_tables


class Embeddings(nn.Module):
    """Token embeddings, normed; positions enter in attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = make_norm(config)

    def forward(self, input_ids_T: torch.Tensor) -> torch.Tensor:
        """(T,) int64 -> (T, D)."""
        return self.norm(self.tok_embeddings(input_ids_T))


class Encoder(nn.Module):
    """ModernBERT's encoder over a packed batch.

    `attention` names a backend of `cmbert.accel.attention_backend`; it is chosen at the first forward, by device.
    """

    def __init__(self, config: ModelConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_layers))
        self.final_norm = make_norm(config)

    def forward(self, input_ids_T: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Packed token ids (T,) int64, cu_seqlens (P+1,) int32 on any device -> final hidden states (T, D)."""
        config = self.config
        hidden_TD = self.embeddings(input_ids_T)
        # Device and dtype come from the activations: under ZeRO-3, touching another module's weight would gather it.
        layout = PackedLayout.build(
            cu_seqlens,
            local_window=config.local_window,
            backend=attention_backend(hidden_TD.device, self.attention),
            device=hidden_TD.device,
            dtype=hidden_TD.dtype,
        )
        head_width = config.hidden_size // config.num_heads
        global_tables = rotary_tables(layout.positions, head_width, config.rope_base_global)
        local_tables = rotary_tables(layout.positions, head_width, config.rope_base_local)
        for layer in self.layers:
            hidden_TD = layer(hidden_TD, global_tables if layer.is_global else local_tables, layout)
        return self.final_norm(hidden_TD)
