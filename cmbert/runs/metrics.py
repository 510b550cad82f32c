"""metrics.jsonl, TensorBoard and W&B: one record per step, rewound on resume so that no step shows twice."""

import dataclasses
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cmbert.config.schema import Recipe
from cmbert.environment import is_installed
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import misfit, rename_keys
from cmbert.files.names import real
from cmbert.files.operations import doing, read_bytes, read_input
from cmbert.files.patient import PatientFile
from cmbert.files.reading import parse_json
from cmbert.files.whole import finite, json_text, write_text

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
MEASURED = (  # numbers of a step that are always finite
    "tokens", "learning_rate", "mask_rate", "masked_tokens", "real_tokens", "realised_mask_rate", "step_seconds",
    "data_wait_seconds", "tokens_per_second", "fill_rate", "time", "skipped_rows",
)  # fmt: skip
FIGURES = (  # that may be null, as are those that JSON has no number for: nan and infinite ones
    "loss", "accuracy", "grad_norm", "heldout_loss", "heldout_accuracy", "heldout_masked_tokens", "peak_memory_bytes",
    "flops_per_second", "mfu", "forward_seconds", "backward_seconds", "optimizer_seconds", "communication_seconds",
)  # fmt: skip
RENAMED = {"rows_left_out": "skipped_rows"}  # fields of earlier runs
SPENT = ("step_seconds", "data_wait_seconds")  # what a step took, in two parts
WANDB_ID_FILE = "wandb_id"


class Event(TypedDict):
    """A line of events.jsonl; it may hold more words."""

    time: float
    kind: str
    step: int
    text: str


_FIELDS: dict[str, Any] = {
    "step": int,
    **dict.fromkeys(MEASURED, NotRequired[float]),
    **dict.fromkeys(FIGURES, NotRequired[float | None]),
    "source_tokens": NotRequired[list[int]],
    "unit_lengths": NotRequired[list[int]],
    "heldout_other_losses": NotRequired[list[float]],
    "source_loss": NotRequired[list[float | None] | None],
}
RECORD: Any = TypedDict("RECORD", _FIELDS)  # type: ignore[misc]
"""A line of metrics.jsonl; it may hold more."""


def read_metrics(run: Path, needed: Sequence[str] = ()) -> list[dict]:
    """Return the records of a run, in step order; a last line cut short by a kill is left out.

    needed: figures that every record must have. Raises CheckpointError naming the line.
    """
    records = _read_lines(run / METRICS_FILE, partial(misfit, hint=RECORD))
    if missing := [name for name in needed if any(name not in record for record in records)]:
        raise CheckpointError(f"{run / METRICS_FILE}: a record lacks {missing[0]!r}; train this run again")
    return records


def read_events(run: Path) -> list[dict]:
    """Return what happened to a run, oldest first; a last line cut short by a kill is left out."""
    return _read_lines(run / EVENTS_FILE, partial(misfit, hint=Event))


def append_event(run: Path, kind: str, step: int, text: str, **more: str) -> None:
    """Add an event to a run's, which may be training; a last line cut short by a kill goes first."""
    path = run / EVENTS_FILE
    if path.is_file() and (torn := len(read_bytes(path).rpartition(b"\n")[2])):
        with doing("write", path):
            os.truncate(path, path.stat().st_size - torn)
    events = PatientFile(path)
    events.write(_event(kind, step, text, **more))
    events.close()


def _read_lines(path: Path, fault_of: Callable[[Any], str | None]) -> list[dict]:
    raw = read_input(path)
    if raw is None:
        return []
    records = []
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):  # a kill may cut the last inside a character
        try:
            record = parse_json(line)
            if b"NaN" in line or b"Infinity" in line:  # what Python's json writes, and this program did once
                record = finite(record)
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply for `finite`
            raise CheckpointError(f"{path}: line {number} is not JSON ({error}); remove that line") from error
        rename_keys(record, RENAMED)
        if fault := fault_of(record):
            raise CheckpointError(f"{path}: line {number}: {fault}; remove that line")
        records.append(record)
    return records


def _continue_lines(path: Path, kept: list[dict]) -> PatientFile:
    """Write the lines that stay, and return the file to append the next ones to.

    It is another file than before: an earlier life that still runs writes into one that nobody sees.
    """
    write_text(path, "".join(_line(record) for record in kept))
    return PatientFile(path)


def _line(record: dict[str, Any]) -> str:
    return json_text(record) + "\n"


def _event(kind: str, step: int, text: str, **more: str) -> bytes:
    return _line({"time": time.time(), "kind": kind, "step": step, "text": text, **more}).encode()


def check_wandb(project: str) -> None:
    """Raise ConfigError if train.wandb_project names a project and the package is missing."""
    if project and not is_installed("wandb"):
        raise ConfigError(f"train.wandb_project: {project!r} needs wandb, not installed: pip install 'cmbert[wandb]'")


def open_wandb(run: Path, recipe: Recipe) -> Any:
    """Return the W&B run of a run directory, the same one in every call: its id is kept there.

    Raises ConfigError if W&B refuses, for example without a login.
    """
    check_wandb(recipe.train.wandb_project)
    import wandb

    path = run / WANDB_ID_FILE
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    known = read_bytes(path).strip()
    if not re.fullmatch(rb"[\w-]{1,128}", known):
        raise CheckpointError(f"{path}: not an id of W&B; remove it: the run gets another one there")
    try:
        return wandb.init(
            project=recipe.train.wandb_project,
            id=known.decode("ascii"),
            name=real(run).name,
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
        from cmbert.runs.board import Board  # TensorBoard is not for those who only read, nor for other ranks

        kept = [record for record in read_metrics(run) if record["step"] < first_step]
        self.file = _continue_lines(run / METRICS_FILE, kept)
        self.events = _continue_lines(run / EVENTS_FILE, read_events(run))
        self.board = Board(run / "tensorboard", first_step)
        self.sources = source_names([source.path for source in recipe.data.sources]) if recipe else []
        self.wandb = open_wandb(run, recipe) if recipe and recipe.train.wandb_project else None

    def write(self, record: dict[str, Any]) -> None:
        """Record one step; `record` has "step", numbers, and lists, of which TensorBoard and W&B get the sources'."""
        self.file.write(_line(record).encode())
        scalars = self.scalars(record)
        self.board.add(scalars, record["step"])
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

    def record_event(self, kind: str, step: int, text: str) -> None:
        """Append what happened to the run; unlike the metrics it is never rewound."""
        self.events.write(_event(kind, step, text))

    def sync(self) -> None:
        """Put what was written on disk; before a checkpoint that relies on it. Raises OSError on a full disk."""
        self.file.sync()

    def close(self) -> None:
        """Put everything on disk."""
        for file in (self.file, self.events, self.board.file):
            file.close()
        if self.wandb is not None:
            self.wandb.finish()
