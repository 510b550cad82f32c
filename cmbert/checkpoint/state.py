"""What a checkpoint says of the run beside its ZeRO files: state.json, proved when it is read."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from cmbert.errors import CheckpointError
from cmbert.files.json_types import read_as

STATE_FILE = "state.json"
RENAMED = {"left_out": "skipped_rows", "asked": "skipped_steps", "rolling": "ephemeral"}  # keys of earlier checkpoints
PAIRS = {"skipped_rows", "skipped_steps"}  # keys of it with pairs [first, last)


class GuardMemory(TypedDict, total=False):
    """What the guards remember (cmbert/train/guards.py)."""

    losses: list[float]
    norms: list[float]
    num_skipped: int
    num_in_a_row: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; each checkpoint saves it as it is."""

    step: int
    """Optimizer steps done; the next one has this number."""
    skipped_rows: tuple[tuple[int, int], ...] = ()
    """Rows [first, last) of the data that no step gets (--skip-steps, guards.spike_action = "rewind")."""
    skipped_steps: tuple[tuple[int, int], ...] = ()
    """Steps [first, last) of --skip-steps, as they were said: said again, they are skipped already."""


@dataclass(frozen=True, kw_only=True)
class TrainState(Progress):
    """What a resume needs besides the ZeRO files: the progress, and what it was made with and from."""

    rows: int
    """Rows consumed: the whole state of the data."""
    tokens: int
    """Row positions seen."""
    world_size: int
    zero_stage: int
    optimizer_kind: str = ""
    """optimizer.kind of the recipe; empty in checkpoints of older versions."""
    tokenizer_fingerprint: str
    shard_fingerprints: list[str]
    source_rows: list[int] = field(default_factory=list)
    """At which of its rows each source of the data is (`Blend.consumed`); empty in checkpoints of older versions."""
    first_rows: list[int] = field(default_factory=list)
    """At which each began (`begin_reading`); empty = at 0."""
    first_row: int = 0
    """The run's row at which they began so: 0, or where a branch took up a blend of its own (runs/branch.py)."""
    ephemeral: bool = False
    """Whether it goes as soon as there is a newer one (train.ephemeral_every_steps)."""
    guard: GuardMemory = field(default_factory=lambda: GuardMemory())
    """What the guards remember of the steps before."""
    job: str = ""
    """Slurm's job that wrote it; its later lives have done what --resume asks for."""

    @property
    def progress(self) -> Progress:
        return Progress(**{part.name: getattr(self, part.name) for part in fields(Progress)})


def read_part(path: Path, hint: Any, renamed: Mapping[str, str] | None = None) -> Any:
    """Return a JSON file of a checkpoint, as `read_as` does. Raises CheckpointError if it is missing or damaged."""
    value = read_as(path, hint, error=CheckpointError, remedy="damaged", renamed=renamed)
    if value is None:
        raise CheckpointError(f"{path}: missing")
    return value


def read_state(checkpoint: Path) -> TrainState:
    """Return the training state of a checkpoint. Raises CheckpointError if it is missing or damaged."""
    path = checkpoint / STATE_FILE
    return state_of(read_part(path, TrainState, RENAMED), path)


def state_of(table: dict[str, Any], path: Path) -> TrainState:
    """Return the training state that a table of its fields is. Raises CheckpointError naming `path`."""
    for key in PAIRS & table.keys():
        table[key] = tuple(map(tuple, table[key]))
    state = TrainState(**table)
    if fault := _fault_of(state):
        raise CheckpointError(f"{path}: {fault}; damaged")
    return state


def _fault_of(state: TrainState) -> str | None:
    """Return what in a state cannot be, or None."""
    for key in sorted(PAIRS):
        if any(len(pair) != 2 or pair[0] >= pair[1] for pair in getattr(state, key)):
            return f"{key}: not pairs [first, last)"
    for key in ("source_rows", "first_rows"):
        if len(found := getattr(state, key)) not in (0, len(state.shard_fingerprints)):
            return f"{key}: {len(found)} numbers for {len(state.shard_fingerprints)} shard sets"
    if len(state.guard.get("losses", [])) != len(state.guard.get("norms", [])):
        return "guard: as many losses as norms"
    if state.first_row > state.rows:
        return "first_row: not among the rows"
    return (
        None
        if state.world_size and state.zero_stage in (1, 2, 3)
        else "world_size or zero_stage: not one to train with"
    )


def readable_states(checkpoints: Iterable[Path]) -> dict[Path, TrainState]:
    """Return the states of those checkpoints whose state is whole; their files are not proved. Raises OSError."""
    found = {}
    for path in checkpoints:
        with contextlib.suppress(CheckpointError):
            found[path] = read_state(path)
    return found
