"""Checkpoints on disk: whole or absent, proved before they are used, and how many stay. checkpoint_writer.py writes.

checkpoints/step_000001000/   ZeRO files of every rank, state.json, MANIFEST.json (size and BLAKE2b of every file)
checkpoints/latest            name of the newest, for people and other programs: nothing here reads it

A run that was told to go back to an older one (--resume PATH) renames those that it leaves before its first step:
whoever looks for the newest, also to go back from a spike, finds one that this run comes from.
"""

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from cmbert.errors import CheckpointError
from cmbert.files import doing, file_size, hash_file, patiently, real, rename, write_text
from cmbert.json_types import read_as

if TYPE_CHECKING:
    import torch

CHECKPOINTS = "checkpoints"
LATEST_FILE = "latest"
STATE_FILE = "state.json"
MANIFEST_FILE = "MANIFEST.json"
DAMAGED_SUFFIX = ".damaged"  # of a checkpoint that a resume passed over
LEFT_SUFFIX = ".left"  # of one that a run went back from, by --resume PATH; it stays until somebody removes it
REMOVED_SUFFIX = ".removed"  # of one that is being removed: a kill meanwhile leaves no half checkpoint
UNIVERSAL_SUFFIX = ".universal"  # beside a checkpoint: the same in DeepSpeed's form for any number of ranks


class FileEntry(TypedDict):
    """What a checkpoint's manifest says of a file."""

    bytes: int
    blake2b: str


class GuardMemory(TypedDict, total=False):
    """What the guards remember (guards.py)."""

    losses: list[float]
    norms: list[float]
    num_skipped: int
    num_in_a_row: int


@dataclass(frozen=True)
class TrainState:
    """What a resume needs besides the ZeRO files."""

    step: int
    """Optimizer steps done; the next one has this number."""
    rows: int
    """Rows consumed: the whole state of the data."""
    tokens: int
    """Row positions seen."""
    world_size: int
    zero_stage: int
    tokenizer_fingerprint: str
    shard_fingerprints: list[str]
    left_out: list[list[int]] = field(default_factory=list)
    """Rows [first, last) of the data that no step got (--skip-steps, guards.spike_action = "rewind")."""
    source_rows: list[int] = field(default_factory=list)
    """At which of its rows each source of the data is (`Blend.consumed`); empty in checkpoints of older versions."""
    first_rows: list[int] = field(default_factory=list)
    """At which each began (`begin_reading`); empty = at 0."""
    rolling: bool = False
    """Whether it goes as soon as there is a newer one (train.rolling_every_steps)."""
    guard: GuardMemory = field(default_factory=lambda: GuardMemory())
    """What the guards remember of the steps before."""
    asked: list[list[int]] = field(default_factory=list)
    """Steps [first, last) of --skip-steps, as they were said: asked again, they are left out already."""
    job: str = ""
    """Slurm's job that wrote it; its later lives have done what --resume asks for."""


class Retention(NamedTuple):
    """Which checkpoints stay."""

    keep_newest: int
    keep_every_tokens: int
    """The first at or after each multiple stays for good; 0 = none."""


def list_checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    try:
        with doing("list", root):
            names = os.listdir(root)  # a glob would pass over what cannot be read
    except FileNotFoundError:
        return []
    found = [root / name for name in names if re.fullmatch(r"step_\d+", name)]
    return sorted(path for path in found if file_size(path / MANIFEST_FILE) is not None)


def aside_of(final: Path, lease: int) -> Path:
    """Return where the owner of a lease builds a checkpoint: no two owners ever write into one folder."""
    return final.with_name(f".{final.name}.{lease}.partial")


def prune(root: Path, retention: Retention, step: int, lease: int) -> None:
    """Remove checkpoints up to `step`, the newest, that need not stay, and what killed runs have left.

    lease: number of who asks; what owners of higher ones build is theirs. One that nobody may write to (chmod -R a-w)
    stays. Raises the first OSError when all else is done.
    """
    states = {path: state for path, state in readable_states(list_checkpoints(root)).items() if state.step <= step}
    lasting = [path for path, state in states.items() if not state.rolling]
    keep = {*lasting[-retention.keep_newest :], *sorted(states, key=lambda path: states[path].step)[-1:]}
    if retention.keep_every_tokens:
        first_of: dict[int, Path] = {}
        for path in lasting:
            first_of.setdefault(states[path].tokens // retention.keep_every_tokens, path)
        keep |= {path for multiple, path in first_of.items() if multiple > 0}
    problems: list[OSError] = []
    for path in sorted(states.keys() - keep):
        if not _is_protected(path):
            _attempt(partial(rename, path, path.with_name(f".{path.name}{REMOVED_SUFFIX}")), problems)
    for suffix in (".partial", UNIVERSAL_SUFFIX, REMOVED_SUFFIX):
        for left in root.glob(f".step_*{suffix}"):
            owner = re.fullmatch(r"\.step_\d+\.(\d+)\.partial", left.name)
            if owner is None or int(owner[1]) <= lease:
                _attempt(partial(_remove, left), problems)
    if problems:
        raise problems[0]


def _is_protected(path: Path) -> bool:
    """Return whether somebody took the right to write to a checkpoint away, from everybody or from us."""
    return not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK)


def _remove(path: Path) -> None:
    with doing("remove", path):
        shutil.rmtree(path)


def _attempt(action: Callable[[], object], problems: list[OSError]) -> None:
    try:
        action()
    except OSError as error:
        problems.append(error)


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that `path` means: itself, or the newest of a run, or None if it has none."""
    if (path / MANIFEST_FILE).is_file():
        return path
    return next(iter(resume_candidates(path)), None)


def resume_candidates(run: Path) -> list[Path]:
    """Return the checkpoints that a resume may use, best first: the newest, then the older ones.

    `latest` is not asked: a run that was killed before it wrote the name has a newer one.
    """
    return patiently(partial(list_checkpoints, run / CHECKPOINTS))[::-1]


def require_checkpoint(path: Path) -> Path:
    """Return the checkpoint that `path` means. Raises CheckpointError when there is none."""
    checkpoint = find_checkpoint(path) if path.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; train first, or name a run or a checkpoints/step_... directory"
        )
    return checkpoint


def describe_file(path: Path) -> FileEntry:
    """Return a file's entry in the manifest."""
    return {"bytes": path.stat().st_size, "blake2b": hash_file(path)}


def name_latest(checkpoint: Path) -> None:
    """Let `latest` name a checkpoint."""
    write_text(checkpoint.parent / LATEST_FILE, checkpoint.name + "\n")


def name_newest(run: Path) -> None:
    """Let `latest` name the newest checkpoint of a run, if it has one."""
    for newest in list_checkpoints(run / CHECKPOINTS)[-1:]:
        name_latest(newest)


def set_aside(checkpoint: Path, suffix: str) -> Path:
    """Rename a checkpoint so that nothing takes it for one, and return its new path; nothing in it is lost.

    suffix: DAMAGED_SUFFIX or LEFT_SUFFIX; a number follows where that name is taken.
    """
    names = (checkpoint.name + suffix + (f".{number}" if number > 1 else "") for number in itertools.count(1))
    target = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    rename(checkpoint, target)
    return target


def leave_behind(root: Path, checkpoint: Path) -> list[Path]:
    """Set aside what a run that goes on from `checkpoint` does not come from; return the new paths.

    That is what is newer, or all if `checkpoint` lies elsewhere.
    """
    is_here = real(checkpoint.parent) == real(root)
    return [
        set_aside(path, LEFT_SUFFIX) for path in list_checkpoints(root) if not is_here or path.name > checkpoint.name
    ]


def damaged_files(checkpoint: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Return what is wrong with `checkpoint`, one line each; of its files only every num_shares-th from `share` on.

    Raises OSError where they cannot be read (after some tries where that may help): they may be whole.
    """
    try:
        manifest = _read_json(checkpoint / MANIFEST_FILE, dict[str, FileEntry])
        read_state(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    if foreign := [name for name in manifest if not _is_inside(name)]:
        return [f"{checkpoint / MANIFEST_FILE}: {foreign[0]!r} is no file of a checkpoint; damaged"]
    found = []
    for name, expected in sorted(manifest.items())[share::num_shares]:
        path = checkpoint / name
        size = patiently(partial(file_size, path))
        if size is None:
            found.append(f"{path}: missing, the manifest lists it")
        elif size != expected["bytes"]:
            found.append(f"{path}: has {size:,} bytes of {expected['bytes']:,}: truncated")
        elif patiently(partial(hash_file, path)) != expected["blake2b"]:
            found.append(f"{path}: does not match its hash: changed")
    return found


def check_files(checkpoint: Path) -> None:
    """Raise CheckpointError unless every file of the manifest is there with its hash."""
    damaged = damaged_files(checkpoint)
    if damaged:
        raise CheckpointError(f"{damaged[0]}; use another checkpoint")


def _is_inside(name: str) -> bool:
    return (
        name.isprintable() and not Path(name).is_absolute() and ".." not in Path(name).parts and name not in ("", ".")
    )


def _read_json(path: Path, hint: Any) -> Any:
    value = read_as(path, hint, error=CheckpointError, remedy="damaged")
    if value is None:
        raise CheckpointError(f"{path}: missing")
    return value


def read_state(checkpoint: Path) -> TrainState:
    """Return the training state of a checkpoint. Raises CheckpointError if it is missing or damaged."""
    path = checkpoint / STATE_FILE
    state = TrainState(**_read_json(path, TrainState))
    if fault := _fault_of(state):
        raise CheckpointError(f"{path}: {fault}; damaged")
    return state


def _fault_of(state: TrainState) -> str | None:
    """Return what in a state cannot be, or None."""
    for key in ("left_out", "asked"):
        if any(len(pair) != 2 or pair[0] >= pair[1] for pair in getattr(state, key)):
            return f"{key}: not pairs [first, last)"
    for key in ("source_rows", "first_rows"):
        if len(found := getattr(state, key)) not in (0, len(state.shard_fingerprints)):
            return f"{key}: {len(found)} numbers for {len(state.shard_fingerprints)} shard sets"
    if len(state.guard.get("losses", [])) != len(state.guard.get("norms", [])):
        return "guard: as many losses as norms"
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


def load_weights(path: Path) -> dict[str, "torch.Tensor"]:
    """Return the fp32 weights of a run's latest checkpoint, or of a checkpoint. Raises CheckpointError."""
    from cmbert.train.engine import consolidate  # torch and DeepSpeed: who only looks for checkpoints needs neither

    checkpoint = require_checkpoint(path)
    check_files(checkpoint)
    return consolidate(checkpoint.parent, checkpoint.name)
