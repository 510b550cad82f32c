"""Guards before the optimizer: what is not finite, or far from the steps before, does not move the weights.

Every rank has one. Loss and gradient norm are sums over all ranks, so that all judge alike without asking each other.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from cmbert.config.schema import LEAST_HISTORY, GuardConfig
from cmbert.errors import CmbertError

MAD_TO_SIGMA = 1.4826  # of a normal distribution: standard deviation / median absolute deviation
LEAST_SPREAD = 0.01  # of the median: steps that hardly differ make no spike of a small change (ours)


class TrainingError(CmbertError):
    """The run cannot go on; the last checkpoint is intact."""


class Guard:
    """Judges each step by its loss and gradient norm, and counts what it turned away."""

    def __init__(self, config: GuardConfig, memory: dict[str, Any] | None = None):
        memory = memory or {}
        self.config = config
        self.losses: deque[float] = deque(memory.get("losses", ()), maxlen=config.spike_window_steps)
        self.norms: deque[float] = deque(memory.get("norms", ()), maxlen=config.spike_window_steps)
        self.num_skipped: int = memory.get("num_skipped", 0)
        """Steps of the run that did not move the weights."""
        self.num_in_a_row: int = memory.get("num_in_a_row", 0)
        self.scores = (0.0, 0.0)
        self.verdict: str | None = None

    def memory(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run judges as the unbroken one."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
        }

    def begin(self, loss: float, gradient_norm: Callable[[], float]) -> None:
        """Announce a step. gradient_norm: known once the optimizer is about to move."""
        self.loss, self.gradient_norm, self.verdict = loss, gradient_norm, None

    def admit(self) -> bool:
        """Return whether the optimizer may move. Asked once for each part of the model, answered once a step."""
        if self.verdict is None:
            self.verdict = self._judge(self.loss, self.gradient_norm())
        return self.verdict == "ok"

    def _judge(self, loss: float, norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        self.scores = (robust_score(loss, self.losses), robust_score(norm, self.norms))
        if self.config.spike_action != "none" and max(self.scores) > self.config.spike_score:
            return "spike"
        return "ok"

    def finish(self, step: int, norm: float, moved: bool) -> str:
        """Count the step and return "ok", "not finite" or "spike".

        moved: whether the optimizer moved; DeepSpeed keeps some gradients that are not finite from it by itself.
        Raises TrainingError, on every rank, after guards.max_skipped_steps in a row.
        """
        verdict = "ok" if moved else self.verdict or "not finite"
        if verdict == "ok":
            self.losses.append(self.loss)
            self.norms.append(norm)
            self.num_in_a_row = 0
            return verdict
        self.num_skipped += 1
        self.num_in_a_row += 1
        if self.num_in_a_row > self.config.max_skipped_steps:
            raise TrainingError(
                f"step {step}: loss {self.loss}, gradient norm {norm}, and {self.num_in_a_row} steps in a row not "
                "applied; the last checkpoint is intact. Resume with a lower schedule.lr_max in a run of its own, or "
                "leave the data out: --skip-steps"
            )
        return verdict


def robust_score(value: float, before: deque[float]) -> float:
    """Return how far `value` lies above the median of `before`, in robust standard deviations; 0 if too few."""
    if len(before) < LEAST_HISTORY:
        return 0.0
    median = statistics.median(before)
    spread = MAD_TO_SIGMA * statistics.median(abs(x - median) for x in before)
    return (value - median) / max(spread, LEAST_SPREAD * abs(median), math.ulp(1.0))
