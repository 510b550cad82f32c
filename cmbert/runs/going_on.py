"""A run whose recipe has changed: whether it goes on in place, and else the line that does what was meant.

In place goes what changes only steps to come, whatever the kind of schedule: more tokens of a constant rate, or of
warmup_stable_decay before its decay; a later change of the blend. It is compared step by step.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from cmbert.config.schema import Recipe
from cmbert.data.sources import phases_of
from cmbert.schedule import Schedule

# Keys that say what is done in which step, and so may change for steps to come.
SCHEDULED = ("train.total_tokens", "train.rows_per_step", "train.ramp_", "schedule.", "data.changes")
SCHEDULED_MASK = ("mask.start_rate", "mask.peak_rate", "mask.end_rate", "mask.warmup_tokens")
# Keys that make another run from its first step: weights of this one would not fit, or not be what was asked for.
FRESH = ("model.", "data.tokenizer", "train.seed", "train.init_from", "train.init_tiling")


def goes_on_in_place(differing: Sequence[str], theirs: Recipe, ours: Recipe, steps: int) -> bool:
    """Return whether `ours` is what a run of `theirs` did in its first `steps` steps. differing: what is not free."""
    return all(key.startswith(SCHEDULED) or key in SCHEDULED_MASK for key in differing) and not disagreement(
        theirs, ours, steps
    )


def disagreement(theirs: Recipe, ours: Recipe, steps: int) -> str:
    """Say what two recipes disagree in before step `steps` by their schedules; empty if in nothing."""
    one, other = Schedule.of(theirs), Schedule.of(ours)
    if other.num_steps < steps:
        return f"its end, after step {other.num_steps:,}"
    for step in range(steps):
        if one.rows(step) != other.rows(step):
            return f"the rows of step {step + 1:,}"
        if one.learning_rate(step) != other.learning_rate(step):
            return f"the learning rate of step {step + 1:,}"
        if one.mask_rate(step) != other.mask_rate(step):
            return f"the mask rate of step {step + 1:,}"
    rows = one.rows_before(steps)
    phases = [
        [phase for phase in phases_of(recipe.data, recipe.train.rows_per_step)[1:] if phase.first_row < rows]
        for recipe in (theirs, ours)
    ]
    return "" if phases[0] == phases[1] else "data.changes"


def way_on(differing: Sequence[str], theirs: Recipe, ours: Recipe, done: Mapping[Path, int]) -> str:
    """Return what does instead what was meant, and the words or lines to type. done: checkpoint -> its steps."""
    run, steps = Path(ours.run_directory), next(iter(done.values()), 0)
    new = f"--set run_directory={shlex.quote(str(free_name(run)))}"
    if not steps or any(key.startswith(FRESH) for key in differing):
        return f"make it another run, by the same command with {new}, or move this one away"
    ways = []
    if all(key.startswith(SCHEDULED) or key in SCHEDULED_MASK for key in differing):
        count = f"{steps:,} step{'s are' if steps > 1 else ' is'} done"
        ways.append(f"{count}, and the two disagree in {disagreement(theirs, ours, steps)}")
        if back := _last_agreeing(theirs, ours, done):
            ways.append(f"to go back to where they agree, the same command with --resume {shlex.quote(str(back))}")
            ways.append(f"to branch there and keep this run, with {new} {_branch_at(run, done[back])}")
    schedule = Schedule.of(theirs)
    if differing == ["data.sources"] and _paths(theirs) == _paths(ours) and steps < schedule.num_steps:
        change: dict[str, Any] = {
            "at_tokens": schedule.tokens_before(steps),
            "weights": [s.weight for s in ours.data.sources],
        }
        changes = [*map(dataclasses.asdict, theirs.data.changes), change]
        table = ", ".join(f"{{ at_tokens = {c['at_tokens']}, weights = {list(c['weights'])} }}" for c in changes)
        ways.append(f"to mix otherwise from here on, set data.sources back and data.changes = [{table}]")
    start = f"to start a run of {ours.train.total_tokens:,} tokens from these weights"
    ways.append(f"{start}, the same command with {new} {from_weights(run, theirs, steps)}")
    return "; ".join(ways)


def how_to_train_further(recipe: Recipe, done: Mapping[Path, int]) -> str:
    """Return what takes a finished run further. done: as of `way_on`."""
    steps, run, train = Schedule.of(recipe).num_steps, Path(recipe.run_directory), recipe.train
    more = dataclasses.replace(recipe, train=dataclasses.replace(train, total_tokens=2 * train.total_tokens))
    if not disagreement(recipe, more, steps):
        return "a larger train.total_tokens goes on from there"
    new = f"--set run_directory={shlex.quote(str(free_name(run)))}"
    weights = f"to train further from its weights, the same command with {new} {from_weights(run, recipe, steps)}"
    if (back := _last_agreeing(recipe, more, done)) is None:
        return weights
    branch = f"a larger train.total_tokens, {new} {_branch_at(run, done[back])}"
    return f"for more tokens from before its decay, the same command with {branch}; {weights}"


def _last_agreeing(theirs: Recipe, ours: Recipe, done: Mapping[Path, int]) -> Path | None:
    """Return the newest checkpoint up to which two recipes do the same."""
    return next((path for path, steps in done.items() if not disagreement(theirs, ours, steps)), None)


def _branch_at(run: Path, step: int) -> str:
    return f"--branch {shlex.quote(f'{run}@{step}')}"


def from_weights(run: Path, recipe: Recipe, steps: int) -> str:
    """Return the options that start a run from the weights of `run`, which has done so many steps."""
    unfinished = " --allow-unfinished" if steps < Schedule.of(recipe).num_steps else ""
    return f"--set train.init_from={shlex.quote(str(run))}{unfinished}"


def free_name(run: Path) -> Path:
    """Return a name beside a run's that nothing has."""
    return next(path for n in range(2, 1_000_000) if not (path := run.with_name(f"{run.name}-{n}")).exists())


def changes_between(theirs: Recipe, ours: Recipe, keys: Sequence[str]) -> list[str]:
    """Return the values of keys in two recipes, as words."""
    return [f"{key} is {_value(theirs, key)} there and {_value(ours, key)} here" for key in keys]


def _value(recipe: Recipe, key: str) -> str:
    return json.dumps(attrgetter(key)(recipe), ensure_ascii=False, default=dataclasses.asdict)


def _paths(recipe: Recipe) -> list[str]:
    return [source.path for source in recipe.data.sources]
