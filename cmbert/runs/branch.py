"""A branch: a run that begins at a checkpoint of another run, with its optimizer and its place in the data.

Which checkpoint that is, its run directory says in branch.json from the first moment on, with that checkpoint's state:
before a checkpoint of its own the branch begins there again, and its lineage is known after the parent has removed it.
"""

import dataclasses
import shlex
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cmbert.checkpoint.files import CHECKPOINTS, find_checkpoint, list_checkpoints
from cmbert.checkpoint.state import TrainState, read_state, state_of
from cmbert.config.load import differing_keys
from cmbert.config.schema import Recipe
from cmbert.data.sources import phases_of
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import read_as
from cmbert.files.names import real
from cmbert.files.whole import write_json
from cmbert.runs.directory import RECIPE_FILE, read_run_recipe
from cmbert.runs.going_on import changes_between, free_name
from cmbert.schedule import Schedule
from cmbert.tokenizer import load_tokenizer

if TYPE_CHECKING:  # torch and numba
    from cmbert.data.blend import Blend

BRANCH_FILE = "branch.json"
# What a checkpoint's weights, optimizer and place in the data rest on, so that no branch may change it.
SHARED = ("model.", "optimizer.", "data.context_tokens", "data.shuffle_", "train.seed")


class BranchRecord(TypedDict):
    """What branch.json says."""

    checkpoint: str
    state: TrainState


@dataclass(frozen=True)
class Branch:
    """Where a branch leaves its parent."""

    checkpoint: Path
    state: TrainState
    """Of the checkpoint, as the parent saved it."""

    @property
    def run(self) -> Path:
        """The parent's run directory, as it was named."""
        return self.checkpoint.parent.parent

    def __str__(self) -> str:
        return f"{self.run}@{self.state.step}"

    def beginning(self) -> Path:
        """Return the parent's checkpoint. Raises CheckpointError if it is gone."""
        if find_checkpoint(self.checkpoint) is None:
            raise CheckpointError(
                f"{self.checkpoint}: gone, and the branch that begins there has no checkpoint of its own yet; restore "
                "it from a copy, or remove the branch's run directory and branch from another step"
            )
        return self.checkpoint


def read_branch(run: Path) -> Branch | None:
    """Return what a run is a branch of, None for a run that is none. Raises CheckpointError for a malformed record."""
    path = run / BRANCH_FILE
    remedy = "restore it from a copy, or begin the branch anew in another run directory"
    record = read_as(path, BranchRecord, error=CheckpointError, remedy=remedy)
    return None if record is None else Branch(Path(record["checkpoint"]), state_of(record["state"], path))


def keep_branch(run: Path, branch: Branch) -> None:
    """Let a run directory say what it is a branch of. Only who has the lease."""
    write_json(run / BRANCH_FILE, {"checkpoint": str(branch.checkpoint), "state": dataclasses.asdict(branch.state)})


def find_branch(recipe: Recipe, asked: str | None) -> Branch | None:
    """Return what the recipe's run is, or by `asked`, RUN@STEP, is to be a branch of; None if it is to be none.

    Raises ConfigError when the run directory is another run's, or `asked` names no step; CheckpointError when there is
    no such checkpoint.
    """
    directory = Path(recipe.run_directory)
    known = read_branch(directory)
    if asked is None:
        return known
    run, step = _parts(asked)
    if known is not None:
        if (real(known.run), known.state.step) != (real(run), step):
            raise ConfigError(
                f"--branch {asked}: {directory} is a branch of {known} already; leave --branch out to go on with it, "
                f"or give the new one a directory of its own: {_own_directory(directory)}"
            )
        return known
    read_run_recipe(run)
    checkpoint = run / CHECKPOINTS / f"step_{step:09d}"
    steps = _steps_of(run)
    if step not in steps:
        raise CheckpointError(f"--branch {asked}: no checkpoint of step {step} there; {_choice(run, steps)}")
    if (directory / RECIPE_FILE).is_file() or _steps_of(directory):
        raise ConfigError(
            f"--branch {asked}: {directory} is another run, which did not begin there; give the branch a directory of "
            f"its own: {_own_directory(directory)}"
        )
    return Branch(checkpoint, read_state(checkpoint))


def _parts(asked: str) -> tuple[Path, int]:
    run, _, step = asked.rpartition("@")
    if not run.strip() or not (step.isascii() and step.isdigit()):
        named = Path(run if run.strip() and not step else asked)
        raise ConfigError(
            f"--branch {asked}: must be RUN@STEP, a run and a step of it; {_choice(named, _steps_of(named))}"
        )
    return Path(run), int(step)


def _steps_of(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(run / CHECKPOINTS)]


def _choice(run: Path, steps: Sequence[int]) -> str:
    if not steps:
        return f"{run} has no checkpoint"
    return f"{run} has checkpoints of step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"


def _own_directory(directory: Path) -> str:
    return f"--set run_directory={shlex.quote(str(free_name(directory)))}"


def check_branch(recipe: Recipe, branch: Branch) -> None:
    """Raise ConfigError when a run of `recipe` cannot begin at a branch's checkpoint: one line with key and remedy.

    Its ZeRO stage and its shards are looked at where they are known (cmbert/train/start.py, `state_in_branch`).
    """
    theirs, state = read_run_recipe(branch.run), branch.state
    init_from = recipe.train.init_from
    if init_from and init_from != theirs.train.init_from:
        raise ConfigError(
            f"train.init_from: {init_from!r}, but --branch takes weights and optimizer from {branch}; leave one out"
        )
    if keys := [key for key in differing_keys(theirs, recipe) if key.startswith(SHARED)]:
        raise ConfigError(
            f"--branch {branch}: {'; '.join(changes_between(theirs, recipe, keys))}; a branch keeps what it begins "
            f"with: set {'it' if len(keys) == 1 else 'them'} back, or take the weights alone, by --set "
            f"train.init_from={shlex.quote(str(branch.checkpoint))} instead of --branch"
        )
    if load_tokenizer(recipe.data.tokenizer).fingerprint != state.tokenizer_fingerprint:
        raise ConfigError(
            f"data.tokenizer: {recipe.data.tokenizer} is not the tokenizer that {branch} was trained with; that run "
            f"names {theirs.data.tokenizer}"
        )
    schedule = Schedule.of(recipe)
    if schedule.num_steps <= state.step:
        raise ConfigError(
            f"train.total_tokens: {recipe.train.total_tokens:,} end with step {schedule.num_steps:,}, and the branch "
            f"begins after step {state.step:,}; set more than {state.tokens:,}"
        )
    if (tokens := schedule.tokens_before(state.step)) != state.tokens:
        raise ConfigError(
            f"train.rows_per_step: {state.step:,} steps of this recipe are {tokens:,} tokens, and of {branch} "
            f"{state.tokens:,}; set rows_per_step and ramp_... back to what they are there"
        )


def state_in_branch(recipe: Recipe, branch: Branch, blend: "Blend") -> TrainState:
    """Return the state of a branch's checkpoint as a run of `recipe`, which reads `blend`, would have saved it.

    A blend that can have made the parent's rows reads on as the parent would. Any other begins its turns anew with the
    branch's first row: sources that the parent read go on where they stand, new ones begin with their first row. Raises
    ConfigError unless the parent's sources are there, in their places.
    """
    check_branch(recipe, branch)
    theirs, state = read_run_recipe(branch.run), branch.state
    ours = [source.shards.fingerprint for source in blend.sources]
    before = state.shard_fingerprints
    for index, saved in enumerate(before):
        if index >= len(ours) or (ours[index] and saved and ours[index] != saved):
            raise ConfigError(
                f"data.sources[{index}]: not the shards that {branch} read as its own, {_path_of(theirs, index)}; list "
                "what it read first, unchanged and in that order, then new sets (weight 0 in [[data.changes]] ends one)"
            )
    if not state.source_rows and len(before) > 1:
        return state  # of a version that mixed in another order: refused as such
    is_same = len(ours) == len(before) and _phases(theirs, state) == _phases(recipe, state)
    if is_same:
        return state
    new = ours[len(before) :]
    begins = [*(state.source_rows or [state.rows]), *[0] * len(new)]
    return dataclasses.replace(
        state, shard_fingerprints=[*before, *new], source_rows=begins, first_rows=begins, first_row=state.rows
    )


def _path_of(recipe: Recipe, index: int) -> str:
    return recipe.data.sources[index].path if index < len(recipe.data.sources) else "which it no longer names"


def _phases(recipe: Recipe, state: TrainState) -> list[tuple[int, tuple[float, ...]]]:
    """Return the weights in force in the rows that a checkpoint's blend has given, each with its first row."""
    phases = phases_of(recipe.data, recipe.train.rows_per_step)
    first = bisect([phase.first_row for phase in phases], state.first_row) - 1
    later = [(phase.first_row, phase.weights) for phase in phases[first + 1 :] if phase.first_row < state.rows]
    return [(state.first_row, phases[first].weights), *later]


def describe_branch(branch: Branch, state: TrainState) -> str:
    """Say where a branch begins. state: of `state_in_branch`."""
    where = f"rows {state.source_rows} of data.sources" if state.source_rows else f"row {state.rows:,}"
    blend = "with a blend of its own" if state.first_row == state.rows else "as its parent would"
    return f"a branch of {branch}, {state.tokens:,} tokens: its weights and optimizer; reads on at {where}, {blend}"
