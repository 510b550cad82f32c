"""Part 3: torch's peak in steps of large under ZeRO 1, with micro-batches of 11, 22 and 44 rows, beside the plan's."""

import sys
from functools import partial
from typing import Any

from measuring import LARGE, LARGE_TRAIN, Measuring, Training, overrides, part, start_training

from cmbert.config.load import load_recipe
from cmbert.plan.plan import make_plan

STEPS = 2  # the first has no moments yet while its gradients are there
GIGABYTE = 1e9
HIGHEST_RATE = {"mask.start_rate": 0.3}  # from the first step: the plan reckons with the stage's highest


def settings_for(measuring: Measuring, rows: int) -> dict[str, Any]:
    """Return one micro-batch of `rows` a step, as `cmbert plan` and `cmbert train` are to see it."""
    batch = {"train.rows_per_step": rows, "train.micro_batch_rows": rows}
    return measuring.settings(LARGE, **HIGHEST_RATE, **batch, **{"kernels.compile": True, "data.num_workers": 0})


def planned_bytes(settings: dict[str, Any]) -> int:
    """Return what `cmbert plan --gpus 1` says."""
    plan = make_plan(load_recipe(LARGE, overrides(settings)), 1)
    (found,) = (memory for memory in plan.memory if memory.zero_stage == plan.zero_stage)
    return found.total_bytes


def read_peak(measuring: Measuring, rows: int, training: Training, settings: dict[str, Any]) -> None:
    """Wait for the steps and end the training, whose checkpoint nobody needs."""
    try:
        records = training.wait_for_steps(STEPS)
    finally:
        training.kill()
    measured = max(record["peak_memory_bytes"] for record in records)
    measuring.put(**{f"memory_{rows}_rows": measured / GIGABYTE})
    measuring.put(**{f"memory_{rows}_rows_plan": planned_bytes(settings) / GIGABYTE})


def measurements(measuring: Measuring) -> None:
    """Take the largest alone, since it needs most of a card; then the two others beside each other."""
    for together in ((44,), (11, 22)):
        started = {}
        for rows in together:
            settings = settings_for(measuring, rows)
            run = measuring.scratch / f"rows{rows}"
            program = (LARGE_TRAIN, str(run.with_suffix(".json")))
            training = start_training(LARGE, run, settings, "--max-steps", "6", program=program)
            started[rows] = (training, settings)
        for rows, (training, settings) in started.items():
            measuring.measure(f"memory_{rows}_rows", partial(read_peak, measuring, rows, training, settings))


if __name__ == "__main__":
    sys.exit(part(measurements))
