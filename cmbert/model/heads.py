"""The masked language model: encoder, prediction head and tied decoder.

Shapes: T tokens of the packed batch, P pieces, M masked positions, D hidden width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.config.schema import ModelConfig
from cmbert.model.encoder import Encoder
from cmbert.model.layers import make_norm


class PredictionHead(nn.Module):
    """dense, GELU, norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = make_norm(config)

    def forward(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """(M, D) -> (M, D)."""
        return self.norm(F.gelu(self.dense(hidden_MD)))


class MaskedLanguageModel(nn.Module):
    """The pretraining model; its state_dict has exactly the keys of transformers' ModernBertForMaskedLM.

    `model` alone gives hidden states; `attention` is the Encoder's.
    """

    def __init__(self, config: ModelConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.model = Encoder(config, attention)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        masked_positions: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the masked positions of one packed batch.

        input_ids (T,) int64, cu_seqlens (P+1,) int32, masked_positions (M,) int64 into T, targets (M,) int64. Returns
        the cross-entropy summed over the M positions (fp32, nats) and how many of them the model ranks first (int64).
        M may be 0: loss and gradients are zeros, so that a rank without targets stays in step with the others.
        """
        logits_MV = self.logits(input_ids, cu_seqlens, masked_positions).float()
        loss_sum = F.cross_entropy(logits_MV, targets, reduction="sum")
        num_correct = (logits_MV.detach().argmax(dim=-1) == targets).sum()
        return loss_sum, num_correct

    def logits(
        self, input_ids: torch.Tensor, cu_seqlens: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores over the vocabulary at `positions` (M,) of the stream -> (M, V), or at every token -> (T, V)."""
        hidden = self.model(input_ids, cu_seqlens)
        if positions is not None:
            hidden = hidden.index_select(0, positions)
        return self.decoder(self.head(hidden))
