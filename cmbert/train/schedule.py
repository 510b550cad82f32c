"""Learning rate and mask rate as pure functions of tokens seen, so that another batch size does not change them."""

import math

from cmbert.config.schema import MaskConfig, Recipe, ScheduleConfig


def step_tokens(recipe: Recipe) -> int:
    """Row positions in one optimizer step: what this project counts as tokens seen."""
    return recipe.train.rows_per_step * recipe.data.context_tokens


def num_steps(recipe: Recipe) -> int:
    """Optimizer steps of the stage."""
    return -(-recipe.train.total_tokens // step_tokens(recipe))


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
    return learning_rate((step + 1) * step_tokens(recipe), recipe.schedule, recipe.train.total_tokens)


def step_mask_rate(step: int, recipe: Recipe) -> float:
    """Mask rate of step `step` (0-based), from the tokens seen before it."""
    return mask_rate(step * step_tokens(recipe), recipe.mask, recipe.train.total_tokens)
