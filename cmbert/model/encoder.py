"""Embeddings and the stack of layers.

Shapes: T tokens of the packed batch, P segments, D hidden width.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cmbert.accel import attention_backend
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.model.attention import PackedLayout
from cmbert.model.layers import EncoderLayer, layer_parts, make_norm
from cmbert.model.rotary import rotary_tables


class Embeddings(nn.Module):
    """Token embeddings, normed; positions enter in attention."""

    def __init__(self, config: ModelConfig, kernels: KernelConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = make_norm(config, kernels)

    def forward(self, input_ids_T: torch.Tensor) -> torch.Tensor:
        """(T,) int64 -> (T, D)."""
        return self.norm(self.tok_embeddings(input_ids_T))


class Encoder(nn.Module):
    """ModernBERT's encoder over a packed batch. The attention backend is chosen at each forward, by device and dtype.

    Raises ConfigError if `kernels` asks for what is not installed.
    """

    def __init__(self, config: ModelConfig, kernels: KernelConfig):
        super().__init__()
        self.config, self.kernels = config, kernels
        self.embeddings = Embeddings(config, kernels)
        parts = layer_parts(kernels.compile)
        self.layers = nn.ModuleList(EncoderLayer(config, index, kernels, parts) for index in range(config.num_layers))
        self.final_norm = make_norm(config, kernels)
        self.num_checkpointed = kernels.num_checkpointed(config.num_layers)

    def forward(
        self,
        input_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        positions: torch.Tensor | None = None,
        longest: int | None = None,
    ) -> torch.Tensor:
        """Packed token ids (T,) int64, cu_seqlens (P+1,) int32 -> final hidden states (T, D).

        positions (T,) in the segments and `longest`: see `PackedLayout.build`, which finds them if they are not given.
        """
        config = self.config
        hidden_TD = self.embeddings(input_ids_T)
        # Device and dtype come from the activations: under ZeRO-3, touching another module's weight would gather it.
        layout = PackedLayout.build(
            cu_seqlens,
            positions,
            longest,
            local_window=config.local_window,
            backend=attention_backend(hidden_TD.device, hidden_TD.dtype, self.kernels.attention),
            device=hidden_TD.device,
            dtype=hidden_TD.dtype,
        )
        if self.kernels.compile:
            # One compilation for any number of segments. Bounds padded to the most that T can hold would do, too, but
            # attention starts its blocks for every segment, the empty ones among them.
            torch._dynamo.mark_dynamic(layout.cu_seqlens, 0)
        head_width = config.hidden_size // config.num_heads
        global_tables = rotary_tables(layout.positions, head_width, config.rope_base_global)
        local_tables = rotary_tables(layout.positions, head_width, config.rope_base_local)
        for index, layer in enumerate(self.layers):
            inputs = (hidden_TD, global_tables if layer.is_global else local_tables, layout)
            if index < self.num_checkpointed and torch.is_grad_enabled():
                hidden_TD = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden_TD = layer(*inputs)
        return self.final_norm(hidden_TD)
