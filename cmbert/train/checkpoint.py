"""Checkpoints on disk: whole or absent, proved before they are used, and how many stay. checkpoint_writer.py writes.

checkpoints/step_000001000/   ZeRO files of every rank, state.json, MANIFEST.json (size and BLAKE2b of every file)
checkpoints/latest            name of the newest
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmbert.errors import CheckpointError
from cmbert.files import hash_file, write_text

if TYPE_CHECKING:
    import torch

CHECKPOINTS = "checkpoints"
LATEST_FILE = "latest"
STATE_FILE = "state.json"
MANIFEST_FILE = "MANIFEST.json"
UNREADABLE = (ValueError, TypeError, OSError)  # what a torn or changed JSON file raises
DAMAGED_SUFFIX = ".damaged"  # of a checkpoint that a resume passed over
UNIVERSAL_SUFFIX = ".universal"  # beside a checkpoint: the same in DeepSpeed's form for any number of ranks


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
    rolling: bool = False
    """Whether it goes as soon as there is a newer one (train.rolling_every_steps)."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the guards remember of the steps before."""


class Retention(NamedTuple):
    """Which checkpoints stay."""

    keep_newest: int
    keep_every_tokens: int
    """The first at or after each multiple stays for good; 0 = none."""


def list_checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    found = [path.parent for path in root.glob(f"step_*/{MANIFEST_FILE}")]
    return sorted(path for path in found if re.fullmatch(r"step_\d+", path.name))


def prune(root: Path, retention: Retention, step: int) -> None:
    """Remove checkpoints up to `step`, the newest, that need not stay, and what killed runs have left.

    Later ones belong to another life of the run, which somebody left by --resume PATH; that is theirs to remove.
    """
    states = {path: state for path, state in readable_states(list_checkpoints(root)).items() if state.step <= step}
    lasting = [path for path, state in states.items() if not state.rolling]
    keep = {*lasting[-retention.keep_newest :], max(states, key=lambda path: states[path].step)}
    if retention.keep_every_tokens:
        first_of: dict[int, Path] = {}
        for path in lasting:
            first_of.setdefault(states[path].tokens // retention.keep_every_tokens, path)
        keep |= {path for multiple, path in first_of.items() if multiple > 0}
    for path in states.keys() - keep:
        (path / MANIFEST_FILE).unlink()  # first: from here on it is no checkpoint
        shutil.rmtree(path)
    for left in [*root.glob(".step_*.partial"), *root.glob(f".step_*{UNIVERSAL_SUFFIX}")]:
        shutil.rmtree(left)


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that `path` means: itself, or the latest of a run, or None if it has none."""
    if (path / MANIFEST_FILE).is_file():
        return path
    latest = path / CHECKPOINTS / LATEST_FILE
    if not latest.is_file():
        return None
    checkpoint = path / CHECKPOINTS / latest.read_text(encoding="utf-8").strip()
    if not (checkpoint / MANIFEST_FILE).is_file():
        raise CheckpointError(
            f"{latest}: names {checkpoint.name}, which is missing; write the name of another checkpoint there"
        )
    return checkpoint


def resume_candidates(run: Path) -> list[Path]:
    """Return the checkpoints that a resume may use, best first: the one that `latest` names, then the older ones.

    Without a `latest` that names one that is there: all, newest first.
    """
    found, latest = list_checkpoints(run / CHECKPOINTS)[::-1], run / CHECKPOINTS / LATEST_FILE
    named = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    names = [path.name for path in found]
    return found[names.index(named) :] if named in names else found


def require_checkpoint(path: Path) -> Path:
    """Return the checkpoint that `path` means. Raises CheckpointError when there is none."""
    checkpoint = find_checkpoint(path) if path.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; train first, or name a run or a checkpoints/step_... directory"
        )
    return checkpoint


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    return {"bytes": path.stat().st_size, "blake2b": hash_file(path)}


def name_latest(checkpoint: Path) -> None:
    """Let `latest` name a checkpoint."""
    write_text(checkpoint.parent / LATEST_FILE, checkpoint.name + "\n")


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that nothing takes it for one; what is in it stays for whoever can mend it."""
    target = checkpoint.with_name(checkpoint.name + DAMAGED_SUFFIX)
    if not target.exists():
        checkpoint.rename(target)


def damaged_files(checkpoint: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Return what is wrong with `checkpoint`, one line each; of its files only every num_shares-th from `share` on."""
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        read_state(checkpoint)
    except UNREADABLE as error:
        return [f"{checkpoint}: {MANIFEST_FILE} or {STATE_FILE} cannot be read: {error}"]
    found = []
    for name, expected in sorted(manifest.items())[share::num_shares]:
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{path}: missing, the manifest lists it")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{path}: has {path.stat().st_size:,} bytes of {expected['bytes']:,}: truncated")
        elif hash_file(path) != expected["blake2b"]:
            found.append(f"{path}: does not match its hash: changed")
    return found


def check_files(checkpoint: Path) -> None:
    """Raise CheckpointError unless every file of the manifest is there with its hash."""
    damaged = damaged_files(checkpoint)
    if damaged:
        raise CheckpointError(f"{damaged[0]}; use another checkpoint")


def read_state(checkpoint: Path) -> TrainState:
    """Return the training state of a checkpoint."""
    return TrainState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))


def readable_states(checkpoints: Iterable[Path]) -> dict[Path, TrainState]:
    """Return the states of those checkpoints whose state can be read; their files are not proved."""
    found = {}
    for path in checkpoints:
        with contextlib.suppress(*UNREADABLE):
            found[path] = read_state(path)
    return found


def load_weights(path: Path) -> dict[str, "torch.Tensor"]:
    """Return the fp32 weights of a run's latest checkpoint, or of a checkpoint. Raises CheckpointError."""
    from cmbert.train.engine import consolidate  # torch and DeepSpeed: who only looks for checkpoints needs neither

    checkpoint = require_checkpoint(path)
    check_files(checkpoint)
    return consolidate(checkpoint.parent, checkpoint.name)
