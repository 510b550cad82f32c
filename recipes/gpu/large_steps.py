"""Part 5: six steps of large under DeepSpeed: host synchronisations, phases, a checkpoint written and loaded."""

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import LARGE, LARGE_TRAIN, Measuring, part, start_training

STEPS, CHECKPOINT_AT = 6, 4
ROWS = 32  # in a micro-batch: T is that of the other parts, so that what they compiled serves
MICRO_BATCHES = 2
SAVED = r"checkpoint \S+: ([\d.]+) GB written in ([\d.]+) s; training stood still for ([\d.]+) s"


def between_steps(records: Sequence[dict], moments: Sequence[tuple[float, str]]) -> list[Counter[str]]:
    """Return what happened where between the records of two steps, for all but the first."""
    return [
        Counter(place for moment, place in moments if before["time"] < moment <= after["time"])
        for before, after in pairwise(records)
    ]


def train(measuring: Measuring) -> None:
    """Train, and read metrics, notes and what the trainer says of its checkpoints."""
    notes = measuring.scratch / "notes.json"
    training = start_training(
        LARGE, measuring.scratch / "run", run_settings(measuring), "--max-steps", str(STEPS),
        program=(LARGE_TRAIN, str(notes)),
    )  # fmt: skip
    records = training.finish()
    steady = records[2:CHECKPOINT_AT]  # compiled, and no checkpoint under way
    phases = [key for key in records[0] if key.endswith("_seconds")]
    measuring.detail(steps=[{key: record.get(key) for key in (*phases, "loss", "real_tokens")} for record in records])
    measuring.put(**{f"steps_{key}": statistics.median(record[key] for record in steady) for key in phases})
    measuring.put(steps_tokens_per_second=statistics.median(record["tokens_per_second"] for record in steady))
    saved = [tuple(map(float, found)) for found in re.findall(SAVED, training.output())]
    measuring.detail(checkpoints=saved)
    gigabytes, write, stall = saved[0]
    measuring.put(steps_checkpoint_stall=stall, steps_checkpoint_write=write, steps_checkpoint_gb=gigabytes)
    measuring.measure("steps_synchronisations", lambda: count_waits(measuring, notes, records), gpu_only=True)


def run_settings(measuring: Measuring) -> dict[str, Any]:
    """Return the settings of this run."""
    batch = {"train.rows_per_step": ROWS * MICRO_BATCHES, "train.micro_batch_rows": ROWS}
    often = {"train.checkpoint_every_steps": CHECKPOINT_AT, "train.keep_checkpoints": 1, "train.log_every_steps": 1}
    return measuring.settings(LARGE, **batch, **often)


def count_waits(measuring: Measuring, notes: Path, records: Sequence[dict]) -> None:
    """Count the host's waits of each step, and say where they are."""
    waits = [(moment, place) for moment, place in json.loads(notes.read_text(encoding="utf-8"))["waits"]]
    steps = between_steps(records, waits)
    measuring.put(steps_synchronisations=statistics.median(sum(step.values()) for step in steps[1:]))
    measuring.detail(waits=[dict(step.most_common(20)) for step in steps])


def load(measuring: Measuring) -> None:
    """Resume the run for one step, and time the loading alone."""
    notes = measuring.scratch / "load.json"
    start_training(
        LARGE, measuring.scratch / "run", run_settings(measuring), "--max-steps", "1", program=(LARGE_TRAIN, str(notes))
    ).finish()
    (seconds,) = json.loads(notes.read_text(encoding="utf-8"))["loads"]
    measuring.put(load_seconds=seconds)


def measurements(measuring: Measuring) -> None:
    """Run all of the part."""
    measuring.measure("steps", lambda: train(measuring))
    measuring.measure("load", lambda: load(measuring))


if __name__ == "__main__":
    sys.exit(part(measurements))
