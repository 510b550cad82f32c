"""Guards before the optimizer: what is not finite, or far from the steps before, does not move the weights.

Every rank has one. Loss and gradient norm are sums over all ranks, so that all judge alike without asking each other.
The verdict is found on the device, where the optimizer reads it: the host learns it a step later and waits for nobody.
"""

import math
from collections import deque
from typing import Any, NamedTuple

import torch

from cmbert.checkpoint.state import GuardMemory
from cmbert.config.schema import LEAST_HISTORY, GuardConfig
from cmbert.errors import CmbertError
from cmbert.zero.engine import global_gradient_norm
from cmbert.zero.optim import StepDecision

MAD_TO_SIGMA = 1.4826  # of a normal distribution: standard deviation / median absolute deviation
LEAST_SPREAD = 0.01  # of the median: steps that hardly differ make no spike of a small change
VERDICTS = ("ok", "not finite", "spike")


class TrainingError(CmbertError):
    """The run cannot go on; the last checkpoint is intact."""


class Judgement(NamedTuple):
    """One step's verdict: on the device, 0-dim float64, when it is made; numbers once somebody has waited for it."""

    verdict: Any
    """Number in VERDICTS."""
    norm: Any
    """Of the gradient over all ranks, before clipping; inf when it is not finite."""
    loss_score: Any
    norm_score: Any
    """Robust standard deviations above the steps before."""


class Guard:
    """Judges each step by its loss and gradient norm on the device; the host counts, later, what was skipped.

    `step` waits for nothing. `finish` gets its judgement once that has arrived, in the steps' order.
    """

    def __init__(self, config: GuardConfig, device: torch.device, memory: GuardMemory | None = None):
        memory = memory or GuardMemory()
        self.config, self.device = config, device
        self.losses: deque[float] = deque(memory.get("losses", ()), maxlen=config.spike_window_steps)
        self.norms: deque[float] = deque(memory.get("norms", ()), maxlen=config.spike_window_steps)
        self.num_skipped: int = memory.get("num_skipped", 0)
        """Steps of the run that were not taken."""
        self.num_in_a_row: int = memory.get("num_in_a_row", 0)
        self._history = torch.full((2, config.spike_window_steps), math.inf, dtype=torch.float64)  # the device's copy
        self._history[:, : len(self.losses)] = torch.tensor([list(self.losses), list(self.norms)], dtype=torch.float64)
        self._history = self._history.to(device)
        self._count = torch.tensor(len(self.losses), device=device)

    def memory(self) -> GuardMemory:
        """Return what a checkpoint keeps, so that a resumed run judges as the unbroken one."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
        }

    def step(self, engine: Any, loss: torch.Tensor) -> Judgement:
        """Let the engine step, unless the step is not sound; return whether it was taken ("ok"), or why not.

        loss: () float64, of the whole step. DeepSpeed steps the optimizer once for each part of the model, which asks
        each time; the first answer holds. Nobody asks where DeepSpeed itself found the gradient not finite.
        """
        judged: list[Judgement] = []

        def should_step() -> StepDecision:
            if not judged:
                judged.append(self._judge(loss, global_gradient_norm(engine).double()))
            return StepDecision(judged[0].norm.float(), (judged[0].verdict != 0).float())

        engine.basic_optimizer.should_step = should_step
        engine.step()
        if judged:
            return judged[0]
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return Judgement(zero + VERDICTS.index("not finite"), zero + math.inf, zero, zero)

    def _judge(self, loss: torch.Tensor, norm: torch.Tensor) -> Judgement:
        figures = torch.stack([loss, norm])
        sound, scores = figures.isfinite().all(), torch.zeros_like(figures)
        verdict = torch.where(sound, 0.0, 1.0).double()
        if self.config.spike_action != "none":
            scores = robust_scores(figures, self._history, self._count)
            verdict = torch.where(sound & (scores.amax() > self.config.spike_score), 2.0, verdict)
            self._remember(figures, verdict == 0)
        return Judgement(verdict, norm, *scores)

    def _remember(self, figures: torch.Tensor, taken: torch.Tensor) -> None:
        place = (self._count % self._history.shape[1]).expand(2, 1)
        self._history.scatter_(1, place, torch.where(taken, figures[:, None], self._history.gather(1, place)))
        self._count += taken

    def finish(self, step: int, loss: float, judgement: Judgement) -> str:
        """Count the step and return "ok", "not finite" or "spike". judgement: as numbers.

        Raises TrainingError, on every rank, after guards.max_skipped_steps in a row.
        """
        verdict = VERDICTS[int(judgement.verdict)]
        if verdict == "ok":
            self.losses.append(loss)
            self.norms.append(judgement.norm)
            self.num_in_a_row = 0
            return verdict
        self.num_skipped += 1
        self.num_in_a_row += 1
        if self.num_in_a_row > self.config.max_skipped_steps:
            raise TrainingError(
                f"step {step}: loss {loss}, gradient norm {judgement.norm}, and {self.num_in_a_row} steps in a row not "
                "applied; the last checkpoint is intact. Resume with a lower schedule.lr_max in a run of its own, or "
                "skip the data: --skip-steps"
            )
        return verdict

    def skip_reason(self, verdict: str, record: dict[str, Any], judgement: Judgement) -> str:
        """Say why a step was not taken. record: its metrics; judgement: as numbers."""
        figures = f"loss {record['loss']:.4g}, gradient norm {record['grad_norm']:.4g}"
        if verdict == "spike":
            scores = f"{judgement.loss_score:.1f} and {judgement.norm_score:.1f}"
            figures += f", {scores} robust standard deviations above the steps before"
        return f"step {record['step']}: {verdict}: {figures}; not applied ({self.num_skipped} so far)"


def robust_scores(figures: torch.Tensor, history: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return how far each figure lies above the median of its history, in robust standard deviations; 0 if too few.

    figures (F,), history (F, W) of which the first min(count, W) columns are filled, the others inf; all float64.
    """
    num_filled = count.clamp(max=history.shape[1])
    middle = _medians(history, num_filled)
    spread = MAD_TO_SIGMA * _medians((history - middle[:, None]).abs(), num_filled)
    scores = (figures - middle) / torch.maximum(spread, LEAST_SPREAD * middle.abs()).clamp_min(math.ulp(1.0))
    return torch.where(num_filled < LEAST_HISTORY, 0.0, scores)


def _medians(values: torch.Tensor, num_filled: torch.Tensor) -> torch.Tensor:
    """Medians (F,) of rows whose last values, inf, do not count."""
    places = torch.stack([(num_filled - 1) // 2, num_filled // 2]).clamp(min=0).expand(len(values), 2)
    return values.sort(dim=1).values.gather(1, places.clamp(max=values.shape[1] - 1)).mean(dim=1)
