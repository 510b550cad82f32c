"""The training loss of each source in one step.

Shapes: S sources, R rows of a micro-batch, M masked positions.
"""

from collections.abc import Sequence

import torch

from cmbert.data.batches import PackedBatch


class SourceLoss:
    """Adds up the losses of one step by source, on the device. A single source costs nothing and gives nothing."""

    def __init__(self, num_sources: int, context_tokens: int, device: torch.device):
        self.context_tokens = context_tokens
        size = num_sources if num_sources > 1 else 0
        self.totals_2S = torch.zeros(2, size, dtype=torch.float64, device=device)  # nats; masked tokens

    def add(self, batch: PackedBatch, loss_M: torch.Tensor, source_R: torch.Tensor) -> None:
        """Add the losses of a micro-batch, everything on the device; source_R (R,): source of each of its rows."""
        if not self.totals_2S.numel():
            return
        source_M = source_R[batch.masked_positions // self.context_tokens]
        loss_M = loss_M.detach().double()
        self.totals_2S.index_add_(1, source_M, torch.stack([loss_M, torch.ones_like(loss_M)]))

    def totals(self) -> torch.Tensor:
        """Return what is to be summed over the ranks, (2 S,) float64; none of a single source."""
        return self.totals_2S.flatten()


def mean_source_loss(totals: Sequence[float]) -> dict[str, list[float | None]]:
    """Return `source_loss` (nats per masked token, None without one) from `SourceLoss.totals`, nothing from nothing."""
    if not totals:
        return {}
    sums, counts = totals[: len(totals) // 2], totals[len(totals) // 2 :]
    return {"source_loss": [total / count if count else None for total, count in zip(sums, counts, strict=True)]}
