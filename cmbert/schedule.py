"""Batch size, learning rate and mask rate as pure functions of tokens seen, the same at any number of ranks."""

import math
from bisect import bisect, bisect_left
from functools import lru_cache
from typing import NamedTuple

from cmbert.config.schema import MaskConfig, Recipe, ScheduleConfig, TrainConfig


class Stretch(NamedTuple):
    """Steps of equal size, until the next stretch begins."""

    first_step: int
    first_row: int
    step_rows: int


@lru_cache(maxsize=8)
def _ramp(train: TrainConfig, context_tokens: int) -> tuple[Stretch, ...]:
    stretches, step, row = [], 0, 0
    if train.ramp_start_rows:
        sizes = range(train.ramp_start_rows, train.rows_per_step, train.ramp_increment_rows)
        for rows in sizes:
            stretches.append(Stretch(step, row, rows))
            steps = -(-train.ramp_tokens // (len(sizes) * rows * context_tokens))
            step, row = step + steps, row + steps * rows
    return (*stretches, Stretch(step, row, train.rows_per_step))


def batch_ramp(recipe: Recipe) -> tuple[Stretch, ...]:
    """The sizes of the stage's steps in turn; the last one stays."""
    return _ramp(recipe.train, recipe.data.context_tokens)


def rows_before(step: int, recipe: Recipe) -> int:
    """Rows of all steps before `step`, over all ranks."""
    stretches = batch_ramp(recipe)
    stretch = stretches[bisect(stretches, step, key=lambda s: s.first_step) - 1]
    return stretch.first_row + (step - stretch.first_step) * stretch.step_rows


def step_rows(step: int, recipe: Recipe) -> range:
    """Numbers of the rows of a step, over all ranks, as they would be if none were left out."""
    return range(rows_before(step, recipe), rows_before(step + 1, recipe))


def tokens_before(step: int, recipe: Recipe) -> int:
    """Row positions of all steps before `step`: what this project counts as tokens seen."""
    return rows_before(step, recipe) * recipe.data.context_tokens


def num_steps(recipe: Recipe) -> int:
    """Optimizer steps of the stage."""
    rows = -(-recipe.train.total_tokens // recipe.data.context_tokens)
    stretches = batch_ramp(recipe)
    stretch = stretches[bisect_left(stretches, rows, key=lambda s: s.first_row) - 1]
    return stretch.first_step - (stretch.first_row - rows) // stretch.step_rows


def damped_cosine(progress: float, schedule: ScheduleConfig) -> float:
    """Learning rate at `progress` in [0, 1] after the warm-up. Source: paper, Eq. 1 (check values: tests).

    The cosine swings between a peak line, from lr_max to gamma * lr_max, and a valley line, from lr_max / 2 to lr_min.
    """
    peak = schedule.lr_max * (1 - (1 - schedule.gamma) * progress)
    valley = schedule.lr_max / 2 * (1 - progress) + schedule.lr_min * progress
    swing = math.cos(math.pi * (2 * schedule.num_swings - 1) * progress)
    return (peak + valley) / 2 + (peak - valley) / 2 * swing


def learning_rate(tokens: int, schedule: ScheduleConfig, total_tokens: int) -> float:
    """Learning rate once `tokens` have been seen: linear warm-up from 0 to lr_max, then by the schedule's kind."""
    if tokens < schedule.warmup_tokens:
        return schedule.lr_max * tokens / schedule.warmup_tokens
    progress = min((tokens - schedule.warmup_tokens) / (total_tokens - schedule.warmup_tokens), 1.0)
    span = schedule.lr_max - schedule.lr_min
    match schedule.kind:
        case "damped_cosine":
            return damped_cosine(progress, schedule)
        case "cosine":
            return schedule.lr_min + span * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return schedule.lr_max - span * progress
        case "constant":
            return schedule.lr_max
        case "warmup_stable_decay":  # 1 - sqrt, the decay that did best in arXiv 2405.18392
            decayed = max(tokens - total_tokens + schedule.decay_tokens, 0) / schedule.decay_tokens
            return schedule.lr_min + span * (1 - math.sqrt(min(decayed, 1.0)))


def mask_rate(tokens: int, mask: MaskConfig, total_tokens: int) -> float:
    """Share of the tokens to predict once `tokens` have been seen: start -> peak over the warm-up, then peak -> end."""
    if tokens < mask.warmup_tokens:
        return mask.start_rate + (mask.peak_rate - mask.start_rate) * tokens / mask.warmup_tokens
    progress = (tokens - mask.warmup_tokens) / (total_tokens - mask.warmup_tokens)
    return mask.peak_rate + (mask.end_rate - mask.peak_rate) * min(progress, 1.0)


def step_learning_rate(step: int, recipe: Recipe) -> float:
    """Learning rate of step `step` (0-based): its value once the step's tokens are counted, so step 0 does learn."""
    return learning_rate(tokens_before(step + 1, recipe), recipe.schedule, recipe.train.total_tokens)


def step_mask_rate(step: int, recipe: Recipe) -> float:
    """Mask rate of step `step` (0-based), from the tokens seen before it."""
    return mask_rate(tokens_before(step, recipe), recipe.mask, recipe.train.total_tokens)
