"""Between which numbers each key of a recipe makes sense, whatever the other keys are. None of them is nan or infinite.

The ends are ours: the upper ones lie far above what anybody trains with, and below what overflows, hangs or is lost.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from cmbert.config.schema import LEAST_HISTORY
from cmbert.errors import ConfigError

COUNT = 2**53  # tokens, steps and rows are summed over ranks in float64, which is exact up to here
SIZE = 2**20  # rows of a batch or a window, widths of a layer
LEAST_EPS = 1e-15  # StableAdamW divides by its square x (1 - beta2): 1e-36 and its inverse are still fp32 numbers
MOST_BETA = 0.999999  # fp32 still tells 1 - beta from 0


class Range(NamedTuple):
    """All numbers from `least` to `most`, either of them left out if it says so."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether `value` is one of them; nan is not."""
        return self.least <= value <= self.most and not (
            (self.above and value == self.least) or (self.below and value == self.most)
        )

    def __str__(self) -> str:
        least, most = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most))
        return f"{'above' if self.above else 'at least'} {least} and {'below' if self.below else 'at most'} {most}"


INTERVAL = POSITIVE_COUNT = Range(1, COUNT)
ANY_COUNT = Range(0, COUNT)
RATE = Range(0, 1, above=True, below=True)
SHARE = Range(0, 1)
WEIGHT = Range(0, 1e15)  # the sum over any number of sources stays finite
RANGES = {
    "model.num_layers": Range(1, 10_000),
    "model.hidden_size": Range(1, SIZE),
    "model.num_heads": Range(1, SIZE),
    "model.intermediate_size": Range(1, SIZE),
    "model.vocab_size": Range(1, 2**24),
    "model.norm_eps": Range(LEAST_EPS, 1.0),
    "model.global_every": Range(1, 10_000),
    "model.local_window": Range(2, 2**24),
    "model.rope_base_global": Range(1, 1e12, above=True),
    "model.rope_base_local": Range(1, 1e12, above=True),
    "model.max_length": Range(8, 2**24),  # fp32 holds every position
    "model.init_std": Range(0, 1.0, above=True),
    "data.sources.weight": WEIGHT,
    "data.sources.max_epochs": Range(0, 1e12, above=True),
    "data.changes.at_tokens": POSITIVE_COUNT,
    "data.changes.weights": WEIGHT,
    "data.context_tokens": Range(8, 2**24),
    "data.shuffle_block_rows": Range(1, SIZE),
    "data.shuffle_blocks": Range(1, SIZE),
    "data.num_workers": Range(0, 1024),
    "mask.start_rate": RATE,
    "mask.peak_rate": RATE,
    "mask.end_rate": RATE,
    "mask.warmup_tokens": ANY_COUNT,
    "mask.mask_prob": SHARE,
    "mask.random_prob": SHARE,
    "optimizer.beta1": Range(0, MOST_BETA),
    "optimizer.momentum": Range(0, MOST_BETA),
    "optimizer.beta2": Range(0, MOST_BETA),
    "optimizer.eps": Range(LEAST_EPS, 1.0),
    "optimizer.weight_decay": Range(0, 100.0),
    "optimizer.gradient_clip": Range(0, 1e9),
    "schedule.lr_max": Range(0, 1.0, above=True),
    "schedule.lr_min": Range(0, 1.0),
    "schedule.warmup_tokens": ANY_COUNT,
    "schedule.decay_tokens": ANY_COUNT,
    "schedule.num_cycles": Range(1, 10_000),
    "schedule.gamma": Range(0, 1),
    "train.total_tokens": POSITIVE_COUNT,
    "train.rows_per_step": Range(1, SIZE),
    "train.micro_batch_rows": Range(1, SIZE),
    "train.ramp_start_rows": Range(0, SIZE),
    "train.ramp_increment_rows": Range(0, SIZE),
    "train.ramp_tokens": ANY_COUNT,
    "train.seed": Range(0, 2**63 - 1),
    "train.checkpoint_every_steps": INTERVAL,
    "train.keep_checkpoints": POSITIVE_COUNT,
    "train.keep_every_tokens": ANY_COUNT,
    "train.ephemeral_every_steps": ANY_COUNT,
    "train.max_failed_saves": ANY_COUNT,
    "train.log_every_steps": INTERVAL,
    "evaluation.every_steps": INTERVAL,
    "evaluation.max_rows": POSITIVE_COUNT,
    "kernels.activation_checkpoint_fraction": SHARE,
    "guards.max_skipped_steps": ANY_COUNT,
    "guards.spike_score": Range(0, 1e9, above=True),
    "guards.spike_window_steps": Range(LEAST_HISTORY, SIZE),  # fewer say nothing about a spike
    "guards.rewind_steps": POSITIVE_COUNT,  # the spike's own batch is left out
    "guards.max_rewinds": ANY_COUNT,
    "guards.hang_seconds": Range(0, 1e7),  # four months; a thread cannot wait for three centuries
}


def check_ranges(config: Any, section: str = "") -> None:
    """Raise ConfigError for the first number that lies outside its range. config: a recipe, or its `section`."""
    for key, value in _numbers(config, section):
        allowed = RANGES[re.sub(r"\[\d+\]", "", key)]
        if not allowed.holds(value):
            raise ConfigError(f"{key}: {value} must be {allowed}")


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Yield every number with its dotted key."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _numbers(getattr(value, item.name), f"{key}.{item.name}" if key else item.name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{key}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
