"""What a stage does at which step: rows, tokens, learning rate, mask rate, the same at any number of ranks."""

import math
from bisect import bisect, bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from cmbert.config.schema import MaskConfig, Recipe, ScheduleConfig, TrainConfig


class RampStage(NamedTuple):
    """Steps of equal size, until the next stage of the batch ramp begins."""

    first_step: int
    first_row: int
    step_rows: int


@dataclass(frozen=True)
class Schedule:
    """A pure function of the step, or of the tokens seen: rows and tokens are counted over all ranks.

    Tokens seen are positions of rows, whether filled or not.
    """

    context_tokens: int
    """Of a row."""
    total_tokens: int
    ramp: tuple[RampStage, ...]
    """The sizes of the steps in turn; the last one stays."""
    rates: ScheduleConfig
    mask: MaskConfig

    @classmethod
    def of(cls, recipe: Recipe) -> "Schedule":
        """Return the schedule of a recipe's stage."""
        context, train = recipe.data.context_tokens, recipe.train
        return cls(context, train.total_tokens, _ramp_of(train, context), recipe.schedule, recipe.mask)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        rows = -(-self.total_tokens // self.context_tokens)
        stage = self.ramp[bisect_left(self.ramp, rows, key=lambda s: s.first_row) - 1]
        return stage.first_step - (stage.first_row - rows) // stage.step_rows

    def rows_before(self, step: int) -> int:
        """Rows of all steps before `step`."""
        stage = self.ramp[bisect(self.ramp, step, key=lambda s: s.first_step) - 1]
        return stage.first_row + (step - stage.first_step) * stage.step_rows

    def rows(self, step: int) -> range:
        """Numbers of the rows of a step, as they would be if none were left out."""
        return range(self.rows_before(step), self.rows_before(step + 1))

    def tokens_before(self, step: int) -> int:
        """Tokens seen in all steps before `step`."""
        return self.rows_before(step) * self.context_tokens

    def learning_rate(self, step: int) -> float:
        """Learning rate of step `step` (0-based), from the tokens seen after it, so that step 0 does learn."""
        return self.learning_rate_at(self.tokens_before(step + 1))

    def mask_rate(self, step: int) -> float:
        """Mask rate of step `step` (0-based), from the tokens seen before it."""
        return self.mask_rate_at(self.tokens_before(step))

    def learning_rate_at(self, tokens: int) -> float:
        """Learning rate once `tokens` have been seen: linear warm-up from 0 to lr_max, then by the recipe's kind."""
        rates = self.rates
        if tokens < rates.warmup_tokens:
            return rates.lr_max * tokens / rates.warmup_tokens
        progress = min((tokens - rates.warmup_tokens) / (self.total_tokens - rates.warmup_tokens), 1.0)
        span = rates.lr_max - rates.lr_min
        match rates.kind:
            case "damped_cosine":
                return damped_cosine(progress, rates)
            case "cosine":
                return rates.lr_min + span * (1 + math.cos(math.pi * progress)) / 2
            case "linear":
                return rates.lr_max - span * progress
            case "constant":
                return rates.lr_max
            case "warmup_stable_decay":  # 1 - sqrt, the decay that did best in arXiv 2405.18392
                decayed = max(tokens - self.total_tokens + rates.decay_tokens, 0) / rates.decay_tokens
                return rates.lr_min + span * (1 - math.sqrt(min(decayed, 1.0))) if decayed else rates.lr_max

    def mask_rate_at(self, tokens: int) -> float:
        """Share of the tokens to predict once `tokens` have been seen: start -> peak in the warm-up, then -> end."""
        mask = self.mask
        if tokens < mask.warmup_tokens:
            return mask.start_rate + (mask.peak_rate - mask.start_rate) * tokens / mask.warmup_tokens
        progress = (tokens - mask.warmup_tokens) / (self.total_tokens - mask.warmup_tokens)
        return mask.peak_rate + (mask.end_rate - mask.peak_rate) * min(progress, 1.0)


def _ramp_of(train: TrainConfig, context_tokens: int) -> tuple[RampStage, ...]:
    stages, step, row = [], 0, 0
    if train.ramp_start_rows:
        sizes = range(train.ramp_start_rows, train.rows_per_step, train.ramp_increment_rows)
        for rows in sizes:
            stages.append(RampStage(step, row, rows))
            steps = -(-train.ramp_tokens // (len(sizes) * rows * context_tokens))
            step, row = step + steps, row + steps * rows
    return (*stages, RampStage(step, row, train.rows_per_step))


def damped_cosine(progress: float, rates: ScheduleConfig) -> float:
    """Learning rate at `progress` in [0, 1] after the warm-up. Source: paper, Eq. 1 (check values: tests).

    The cosine swings between a peak line, from lr_max to gamma * lr_max, and a valley line, from lr_max / 2 to lr_min.
    """
    peak = rates.lr_max * (1 - (1 - rates.gamma) * progress)
    valley = rates.lr_max / 2 * (1 - progress) + rates.lr_min * progress
    swing = math.cos(math.pi * (2 * rates.num_cycles - 1) * progress)
    return (peak + valley) / 2 + (peak - valley) / 2 * swing
