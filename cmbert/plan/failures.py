"""How often to write checkpoints when nodes fail: the best interval, in closed form (tests simulate it).

Failures come independently, at a constant rate. A checkpoint stops training for `stall_seconds`; its files then take
`write_seconds` beside training, and until they are there a failure falls back to the checkpoint before.
"""

import math
from dataclasses import dataclass

from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.plan.assumptions import Assumptions
from cmbert.progress import duration
from cmbert.schedule import Schedule

HOPELESS = 5.0  # failures between two checkpoints: e^5 tries for each
CURVE_POINTS = 41  # of the drawn curve: from a twentieth of the best interval to 20 times it


@dataclass(frozen=True)
class LostTime:
    """What checkpoints and failures cost at one interval."""

    name: str
    interval_steps: int
    interval_seconds: float
    """Of training between two checkpoints."""
    stall_share: float
    """Of the stage's hours without failures, like the two below: training stands still."""
    redone_share: float
    """Steps done again."""
    restart_share: float
    lost_share: float
    """The three together."""
    lost_hours: float


@dataclass(frozen=True)
class Failures:
    """The stage's failures on its nodes, and what intervals cost."""

    num_nodes: int
    job_mtbf_hours: float
    expected: float
    """Failures in the stage."""
    best_interval_seconds: float
    needless: str
    """Why no checkpoint is worth its stall before the end of the stage; empty if one is."""
    lost_times: tuple[LostTime, ...]
    """The best interval, and those of the recipe; none where checkpoints are needless."""
    curve: tuple[tuple[float, float], ...]
    """Interval, seconds, and share lost, in closed form."""


def best_interval(stall_seconds: float, mtbf_seconds: float) -> float:
    """Return the seconds between checkpoints that lose least: Daly's estimate (2006, FGCS 22), Young's to first order.

    At a stall as long as twice the time between failures and beyond, that time itself.
    """
    if stall_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = stall_seconds / (2 * mtbf_seconds)
    return math.sqrt(2 * stall_seconds * mtbf_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_seconds


def lost_shares(interval: float, stall: float, write: float, restart: float, mtbf: float) -> tuple[float, float, float]:
    """Return the shares of productive time that stalls, redone work and restarts add; all arguments in seconds.

    Daly's complete model for a checkpoint that is there at once (write = 0): from one to the next pass
    (mtbf + restart') (e^(cycle / mtbf) - 1) seconds. A checkpoint that is not there yet costs another write seconds of
    work at each failure.
    """
    cycle = interval + stall
    failures = math.expm1(cycle / mtbf)  # per cycle that is completed
    wasted = mtbf * failures - cycle + failures * write  # work that failures undo, and the wait for files
    away = failures * mtbf * math.expm1(restart / mtbf)  # restarts may fail, too
    return stall / interval, wasted / interval, away / interval


def make_failures(recipe: Recipe, num_gpus: int, hours: float, assumptions: Assumptions) -> Failures:
    """Return the failures that a stage of `hours` meets, and what its own intervals and the best one cost.

    Raises ConfigError when checkpoints are so rare that the stage would hardly advance.
    """
    step_seconds = 3600 * hours / Schedule.of(recipe).num_steps
    num_nodes = math.ceil(num_gpus / assumptions.node_gpus)
    mtbf_hours = assumptions.node_mtbf_hours / num_nodes
    times = (assumptions.stall_seconds, assumptions.write_seconds, 60 * assumptions.restart_minutes, 3600 * mtbf_hours)
    if times[2] > HOPELESS * times[3]:
        raise ConfigError(
            f"--restart-minutes: {assumptions.restart_minutes:g} is so long that one of {num_nodes} nodes, which fails "
            f"every {mtbf_hours:,.2g} hours (--node-mtbf-hours), would undo every restart"
        )
    best = best_interval(times[0], times[3])
    curve = [best * 20 ** (2 * place / (CURVE_POINTS - 1) - 1) for place in range(CURVE_POINTS)]
    drawn = tuple((interval, sum(lost_shares(interval, *times))) for interval in curve)
    if 3600 * hours < best:
        needless = (
            f"n/a: the stage is over in {' '.join(duration(3600 * hours))}, and the best interval between checkpoints "
            f"is {' '.join(duration(best))}: what is written at its end is enough"
        )
        return Failures(num_nodes, mtbf_hours, hours / mtbf_hours, best, needless, (), drawn)
    train = recipe.train
    named = {"best": max(round(best / step_seconds), 1), "checkpoint_every_steps": train.checkpoint_every_steps}
    if train.ephemeral_every_steps:
        named["ephemeral_every_steps"] = min(train.ephemeral_every_steps, train.checkpoint_every_steps)
    lost_times = []
    for name, steps in named.items():
        if steps * step_seconds + times[0] + times[1] > HOPELESS * times[3]:
            raise ConfigError(
                f"train.checkpoint_every_steps: {steps:,} steps take {steps * step_seconds / 3600:,.1f} hours, and one "
                f"of {num_nodes} nodes fails every {mtbf_hours:,.2g} (--node-mtbf-hours): the stage would not end; "
                f"best: train.checkpoint_every_steps = {named['best']}"
            )
        parts = lost_shares(steps * step_seconds, *times)
        total = sum(parts)
        lost_times.append(LostTime(name, steps, steps * step_seconds, *parts, total, total * hours))
    return Failures(num_nodes, mtbf_hours, hours / mtbf_hours, best, "", tuple(lost_times), drawn)
