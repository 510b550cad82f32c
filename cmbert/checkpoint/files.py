"""Checkpoints on disk: whole or absent, proved before use. writer.py writes, retention.py says which stay.

checkpoints/step_000001000/   ZeRO files of every rank, state.json, MANIFEST.json (size and BLAKE2b of every file)
checkpoints/latest            name of the newest, for people and other programs: nothing here reads it

A run that was told to go back to an older one (--resume PATH) renames those that it leaves before its first step:
whoever looks for the newest, also to go back from a spike, finds one that this run comes from.
"""

import itertools
import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import TypedDict

from cmbert.checkpoint.state import read_part, read_state
from cmbert.errors import CheckpointError
from cmbert.files.names import real
from cmbert.files.operations import doing, file_size, hash_file, patiently, read_input, rename
from cmbert.files.whole import write_text

CHECKPOINTS = "checkpoints"
LATEST_FILE = "latest"
MANIFEST_FILE = "MANIFEST.json"
DAMAGED_SUFFIX = ".damaged"  # of a checkpoint that a resume found damaged
LEFT_SUFFIX = ".left"  # of one that a run went back from, by --resume PATH; it stays until somebody removes it
WEIGHTS_FILE = "model.safetensors"  # of a checkpoint of weights alone: nothing to train on from
UNIVERSAL_SUFFIX = ".universal"  # beside a checkpoint: the same in DeepSpeed's form for any number of ranks


class FileEntry(TypedDict):
    """What a checkpoint's manifest says of a file."""

    bytes: int
    blake2b: str


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
        raise CheckpointError(f"{path}: no checkpoint there; {_where_it_may_be(path)}")
    return checkpoint


def has_weights_alone(checkpoint: Path) -> bool:
    """Return whether a checkpoint is one of weights alone (weights.py), without an optimizer's state."""
    return (checkpoint / WEIGHTS_FILE).is_file()


def require_resumable(path: Path) -> Path:
    """Return the checkpoint that `path` means. Raises CheckpointError when no training goes on from it."""
    checkpoint = require_checkpoint(path)
    if has_weights_alone(checkpoint):
        raise CheckpointError(f"{path}: weights alone, nothing to train on from; start a run with train.init_from")
    return checkpoint


def _where_it_may_be(path: Path) -> str:
    """Return what to do about a path that has no checkpoint, by what it is."""
    if (path / "config.json").is_file():  # of `cmbert export`, whose card has a chapter for each run; or somebody's
        card = read_input(path / "README.md") or b""
        runs = re.findall(r"^## Stage \d+: (.+)$", card.decode("utf-8", "replace"), re.MULTILINE)
        of = f" ({runs[-1]!r} by its card)" if runs else ""
        return f"an exported folder has weights alone, nothing to train on from; name the run that it was made of{of}"
    if (path / "resolved.toml").is_file():
        command = f"cmbert train {shlex.quote(str(path / 'resolved.toml'))}"
        return f"the run has not come to its first one; train it on: `{command}`"
    return "train first, or name a run or a checkpoints/step_... directory"


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


def quarantine(checkpoint: Path, suffix: str) -> Path:
    """Rename a checkpoint so that nothing takes it for one, and return its new path; nothing in it is lost.

    suffix: DAMAGED_SUFFIX or LEFT_SUFFIX; a number follows where that name is taken.
    """
    names = (checkpoint.name + suffix + (f".{number}" if number > 1 else "") for number in itertools.count(1))
    target = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    rename(checkpoint, target)
    return target


def leave_behind(root: Path, checkpoint: Path) -> list[Path]:
    """Quarantine what a run that goes on from `checkpoint` does not come from; return the new paths.

    That is what is newer, or all if `checkpoint` lies elsewhere.
    """
    is_here = real(checkpoint.parent) == real(root)
    return [
        quarantine(path, LEFT_SUFFIX) for path in list_checkpoints(root) if not is_here or path.name > checkpoint.name
    ]


def damaged_files(checkpoint: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Return what is wrong with `checkpoint`, one line each; of its files only every num_shares-th from `share` on.

    Raises OSError where they cannot be read (after some tries where that may help): they may be whole.
    """
    try:
        manifest = read_part(checkpoint / MANIFEST_FILE, dict[str, FileEntry])
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
