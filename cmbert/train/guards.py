"""Checks between the gradient and the optimizer. Their inputs are summed over ranks, so every rank decides alike."""

import math

from cmbert.errors import CmbertError


class TrainingError(CmbertError):
    """The run cannot go on; the last checkpoint is intact."""


def require_finite(loss: float, step: int) -> None:
    """Raise TrainingError when the global loss of `step` is not finite, before the optimizer has moved."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"step {step}: the loss is {loss}; nothing was applied. Resume from the last checkpoint with a lower "
            "schedule.lr_max, or look at the data of this step"
        )
