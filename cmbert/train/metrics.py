"""metrics.jsonl and TensorBoard: one record per step, rewound on resume so that no step shows twice."""

import json
import os
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cmbert.errors import CheckpointError
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


class MetricsWriter:
    """Append one JSON line per step and mirror it to TensorBoard. Only rank 0 has one."""

    def __init__(self, run: Path, first_step: int):
        kept = [record for record in read_metrics(run) if record["step"] < first_step]
        write_text(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = open(run / METRICS_FILE, "a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def write(self, record: dict[str, Any]) -> None:
        """Record one step; `record` has "step", numbers, and lists of numbers, which TensorBoard does not get."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Put everything on disk."""
        os.fsync(self.file.fileno())
        self.file.close()
        self.board.close()
