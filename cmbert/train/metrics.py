"""metrics.jsonl, TensorBoard and W&B: one record per step, rewound on resume so that no step shows twice."""

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cmbert.accel import is_installed
from cmbert.config.schema import Recipe
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files import write_text

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"


def record_event(run: Path, kind: str, step: int, text: str) -> None:
    """Append what happened to a run, on disk when this returns; unlike the metrics it is never rewound."""
    with open(run / EVENTS_FILE, "a", encoding="utf-8") as file:
        file.write(
            json.dumps({"time": time.time(), "kind": kind, "step": step, "text": text}, ensure_ascii=False) + "\n"
        )
        file.flush()
        os.fsync(file.fileno())


def read_events(run: Path) -> list[dict]:
    """Return what happened to a run, oldest first; a last line cut short by a kill is left out."""
    path = run / EVENTS_FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


WANDB_ID_FILE = "wandb_id"


def read_metrics(run: Path) -> list[dict]:
    """Return the records of a run, in step order; a last line cut short by a kill is left out."""
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: a line is not JSON ({error}); remove that line") from error


def check_wandb(project: str) -> None:
    """Raise ConfigError if train.wandb_project names a project and the package is missing."""
    if project and not is_installed("wandb"):
        raise ConfigError(f"train.wandb_project: {project!r} needs wandb, which is not installed: pip install wandb")


def open_wandb(run: Path, recipe: Recipe) -> Any:
    """Return the W&B run of a run directory, the same one in every call: its id is kept there.

    Raises ConfigError if W&B refuses, for example without a login.
    """
    check_wandb(recipe.train.wandb_project)
    import wandb

    path = run / WANDB_ID_FILE
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    try:
        return wandb.init(
            project=recipe.train.wandb_project,
            id=path.read_text(encoding="utf-8").strip(),
            name=run.resolve().name,
            resume="allow",
            dir=run,
            config=dataclasses.asdict(recipe),
        )
    except wandb.Error as error:
        raise ConfigError(
            f"train.wandb_project: W&B refuses ({error}); log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error


def source_names(paths: Sequence[str]) -> list[str]:
    """Return the last part of each path, or the whole ones where two sources would have one name."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


class MetricsWriter:
    """Append one JSON line per step and mirror it to TensorBoard and W&B. Only rank 0 has one."""

    def __init__(self, run: Path, first_step: int, recipe: Recipe | None = None):
        """recipe: names the sources and W&B's project; without it there is neither. Raises ConfigError."""
        kept = [record for record in read_metrics(run) if record["step"] < first_step]
        write_text(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = open(run / METRICS_FILE, "a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self.sources = source_names([source.path for source in recipe.data.sources]) if recipe else []
        self.wandb = open_wandb(run, recipe) if recipe and recipe.train.wandb_project else None

    def write(self, record: dict[str, Any]) -> None:
        """Record one step; `record` has "step", numbers, and lists, of which TensorBoard and W&B get the sources'."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        scalars = self.scalars(record)
        for name, value in scalars.items():
            self.board.add_scalar(name, value, record["step"])
        if self.wandb is not None:
            self.wandb.log(scalars, step=record["step"])

    def scalars(self, record: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of a record; a list of each source's, as `source_loss`, becomes `source_loss/NAME`."""
        found: dict[str, Any] = {}
        for name, value in record.items():
            if name.startswith("source_"):
                found |= {f"{name}/{source}": item for source, item in zip(self.sources, value, strict=False)}
            elif name != "step":
                found[name] = value
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    def close(self) -> None:
        """Put everything on disk."""
        os.fsync(self.file.fileno())
        self.file.close()
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
