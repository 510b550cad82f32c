"""How many rows one forward of one rank takes: a step, and every size of a batch ramp, divides over any rank count."""

import math

from cmbert.config.schema import TrainConfig
from cmbert.errors import ConfigError


def possible_micro_batches(train: TrainConfig, world_size: int) -> list[int]:
    """Return the micro-batches, rows, that every step divides into on `world_size` ranks, ascending; empty if none."""
    share, left = divmod(_common_rows(train), world_size)
    return [] if left else [rows for rows in range(1, share + 1) if share % rows == 0]


def taken_micro_batch(train: TrainConfig, world_size: int) -> int:
    """Return the rows of a micro-batch on `world_size` ranks: the most that divide, train.micro_batch_rows at most.

    Raises ConfigError when a step does not divide over the ranks at all.
    """
    possible = possible_micro_batches(train, world_size)
    if possible:
        return max(rows for rows in possible if rows <= train.micro_batch_rows)
    common = _common_rows(train)
    counts = [count for count in range(1, common + 1) if common % count == 0]
    nearest = [max(c for c in counts if c < world_size), *[c for c in counts if c > world_size][:1]]
    if train.ramp_start_rows:
        keys = "train.rows_per_step, train.ramp_start_rows, train.ramp_increment_rows"
        rows = f"{train.rows_per_step}, {train.ramp_start_rows} and {train.ramp_increment_rows} rows do not all divide"
    else:
        keys, rows = "train.rows_per_step", f"{train.rows_per_step} rows do not divide"
    work = " or ".join(map(str, nearest))
    raise ConfigError(f"{keys}: {rows} over {world_size} GPUs (ranks); nearest that work: {work} GPUs")


def describe_micro_batch(train: TrainConfig, world_size: int) -> str:
    """Say in one line why a micro-batch has fewer rows than it may and than there are; empty if it has not."""
    rows, share = taken_micro_batch(train, world_size), train.rows_per_step // world_size
    if rows in (train.micro_batch_rows, share):
        return ""
    ramp = f" and the ramp's common {_common_rows(train) // world_size}" if train.ramp_start_rows else ""
    return (
        f"micro-batches of {rows} {'row' if rows == 1 else 'rows'}: {share} rows a GPU{ramp} do not divide into "
        f"train.micro_batch_rows = {train.micro_batch_rows}"
    )


def _common_rows(train: TrainConfig) -> int:
    """Rows that divide the steps of every size: a ramp's sizes are its start and so many increments."""
    return math.gcd(train.rows_per_step, train.ramp_start_rows, train.ramp_increment_rows)
