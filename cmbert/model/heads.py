"""The masked language model: encoder, prediction head and tied decoder.

Shapes: T tokens of the packed batch, P segments, M masked positions, D hidden width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.accel import compiled
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.model.attention import Attention
from cmbert.model.encoder import Encoder
from cmbert.model.layers import GatedMLP, make_norm
from cmbert.model.loss import ChunkFunction, chunk_loss, fusible_chunk_loss, masked_cross_entropy

EMBEDDING, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"
"""One parameter under two names; files hold it under the first alone."""


class PredictionHead(nn.Module):
    """dense, GELU, norm."""

    def __init__(self, config: ModelConfig, kernels: KernelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = make_norm(config, kernels)

    def forward(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """(M, D) -> (M, D)."""
        return self.norm(F.gelu(self.dense(hidden_MD)))


class Decoder(nn.Linear):
    """Scores over the vocabulary, or the loss of targets. ZeRO-3 gathers the weight for this module's forward alone."""

    def __init__(self, config: ModelConfig, kernels: KernelConfig):
        super().__init__(config.hidden_size, config.vocab_size)
        # The number of masked positions differs from step to step: one compilation for all.
        self.chunk_loss: ChunkFunction = compiled(fusible_chunk_loss, dynamic=True) if kernels.compile else chunk_loss

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """(M, D) -> (M, V); with targets (M,): what `masked_cross_entropy` returns of them."""
        if targets is None:
            return F.linear(hidden, self.weight, self.bias)
        return masked_cross_entropy(hidden, self.weight, self.bias, targets, self.chunk_loss)


class MaskedLanguageModel(nn.Module):
    """The pretraining model; its state_dict has exactly the keys of transformers' ModernBertForMaskedLM.

    `model` alone gives hidden states.
    """

    def __init__(self, config: ModelConfig, kernels: KernelConfig | None = None):
        super().__init__()
        kernels = kernels or KernelConfig()
        self.config = config
        self.model = Encoder(config, kernels)
        self.head = PredictionHead(config, kernels)
        self.decoder = Decoder(config, kernels)
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        masked_positions: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor | None = None,
        longest: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of the masked positions of one packed batch.

        input_ids (T,) int64, cu_seqlens (P+1,) int32, masked_positions (M,) int64 into T, targets (M,) int64; positions
        (T,) in the segments and `longest` spare the device a wait (`PackedLayout.build`). Returns the cross-entropy
        summed over the M positions (fp32, nats), how many of them the model ranks first (int64), and the cross-entropy
        of each (M,), without a gradient.
        M may be 0: loss and gradients are zeros, so that a rank without targets stays in step with the others.
        """
        hidden_MD = self.model(input_ids, cu_seqlens, positions, longest).index_select(0, masked_positions)
        return self.decoder(self.head(hidden_MD), targets)

    def logits(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        masked_positions: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        longest: int | None = None,
    ) -> torch.Tensor:
        """Scores over the vocabulary at `masked_positions` (M,) -> (M, V), or at every token -> (T, V)."""
        hidden = self.model(input_ids, cu_seqlens, positions, longest)
        if masked_positions is not None:
            hidden = hidden.index_select(0, masked_positions)
        return self.decoder(self.head(hidden))


def stacked_matrices(model: nn.Module) -> dict[torch.Tensor, int]:
    """Return the weights that map hidden states to hidden states, and how many matrices of equal shape lie in each.

    Those of the layers and the head: queries, keys and values are three matrices, GeGLU's input and gate are two. They
    lie one above the other, each as many rows. Embeddings, norms and the decoder's bias are not among them.
    """
    found: dict[torch.Tensor, int] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            found |= {module.Wqkv.weight: 3, module.Wo.weight: 1}
        elif isinstance(module, GatedMLP):
            found |= {module.Wi.weight: 2, module.Wo.weight: 1}
        elif isinstance(module, PredictionHead):
            found[module.dense.weight] = 1
    return found
