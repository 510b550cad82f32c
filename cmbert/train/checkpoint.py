"""Checkpoints that are whole or absent: written aside, hashed into MANIFEST.json, renamed, then named in `latest`.

checkpoints/step_000001000/   ZeRO files of every rank, state.json, MANIFEST.json
checkpoints/latest            name of the newest
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cmbert.errors import CheckpointError
from cmbert.files import hash_file, publish_directory, write_json, write_text
from cmbert.train.engine import consolidate, load_engine, save_engine

CHECKPOINTS = "checkpoints"
LATEST_FILE = "latest"
STATE_FILE = "state.json"
MANIFEST_FILE = "MANIFEST.json"


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
    """Batches [first, last) of the data that no step got (--skip-steps)."""


def save_checkpoint(run: Path, engine: Any, state: TrainState, keep: int) -> Path:
    """Write a checkpoint and remove all but the `keep` newest. All ranks call this."""
    root = run / CHECKPOINTS
    final = root / f"step_{state.step:09d}"
    aside = root / f".{final.name}.partial"
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    torch.distributed.barrier()
    save_engine(engine, root, aside.name)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_json(aside / STATE_FILE, asdict(state))
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {str(p.relative_to(aside)): {"bytes": p.stat().st_size, "blake2b": hash_file(p)} for p in files}
        write_json(aside / MANIFEST_FILE, manifest)
        shutil.rmtree(final, ignore_errors=True)  # an earlier life of the run may have come this far
        publish_directory(aside, final)
        write_text(root / LATEST_FILE, final.name + "\n")
        for old in _checkpoints(root)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return final


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"step_*/{MANIFEST_FILE}"))


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


def require_checkpoint(path: Path) -> Path:
    """Return the checkpoint that `path` means. Raises CheckpointError when there is none."""
    checkpoint = find_checkpoint(path) if path.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; train first, or name a run or a checkpoints/step_... directory"
        )
    return checkpoint


def check_files(checkpoint: Path) -> None:
    """Raise CheckpointError unless every file of the manifest is there with its hash."""
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, the manifest lists it; resume from another checkpoint")
        if path.stat().st_size != expected["bytes"] or hash_file(path) != expected["blake2b"]:
            raise CheckpointError(
                f"{path}: does not match its hash: truncated or changed; resume from another checkpoint"
            )


def read_state(checkpoint: Path) -> TrainState:
    """Return the training state of a checkpoint."""
    return TrainState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))


def load_checkpoint(checkpoint: Path, engine: Any) -> None:
    """Restore the engine from a checkpoint of the same world size and ZeRO stage. All ranks call this."""
    load_engine(engine, checkpoint.parent, checkpoint.name)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the fp32 weights of a run's latest checkpoint, or of a checkpoint. Raises CheckpointError."""
    checkpoint = require_checkpoint(path)
    check_files(checkpoint)
    return consolidate(checkpoint.parent, checkpoint.name)
