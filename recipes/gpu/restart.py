"""Part 4: kill -9 in the middle of 600 steps of the quickstart's model, resume; beside a run that nobody touched."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from measuring import QUICKSTART, Measuring, part, start_training

from cmbert.config.load import load_recipe
from cmbert.config.schema import KernelConfig

STEPS, DRY_STEPS = 600, 18
CHECKPOINTS = 6  # in a run


def settings_for(measuring: Measuring) -> tuple[int, dict[str, Any]]:
    """Return the number of steps and the settings of both runs."""
    steps = DRY_STEPS if measuring.dry_run else STEPS
    recipe = load_recipe(Path(QUICKSTART))
    context = measuring.context(1024) if measuring.dry_run else recipe.data.context_tokens
    tokens = steps * recipe.train.rows_per_step * context
    settings = measuring.settings(
        QUICKSTART,
        **{
            "optimizer.kind": "stable_adamw",
            "train.total_tokens": tokens,
            "train.checkpoint_every_steps": steps // CHECKPOINTS,
            "schedule.warmup_tokens": tokens // 10,
            "mask.warmup_tokens": tokens // 10,
        },
    )
    if "deterministic" in {field.name for field in dataclasses.fields(KernelConfig)}:
        settings["kernels.deterministic"] = True
    return steps, settings


def restart(measuring: Measuring) -> None:
    """Run both at once, on one GPU; compare the losses of every step."""
    steps, settings = settings_for(measuring)
    unbroken = start_training(QUICKSTART, measuring.scratch / "unbroken", settings)
    broken = start_training(QUICKSTART, measuring.scratch / "broken", settings)
    broken.wait_for_steps(steps // 2)
    broken.kill()
    resumed = start_training(QUICKSTART, broken.run, settings)
    records = resumed.finish()
    found = re.search(r"resuming at step (\d+)", resumed.output())
    if found is None:
        raise RuntimeError("there was no checkpoint to resume from when the run was killed")
    first = int(found[1])
    measuring.put(restart_seconds=records[first]["time"] - resumed.started)
    expected = unbroken.finish()
    losses = [(ours["loss"], theirs["loss"]) for ours, theirs in zip(records, expected, strict=True)]
    measuring.put(restart_difference=max(abs(ours - theirs) for ours, theirs in losses))
    measuring.detail(
        resumed_at=first,
        steps=len(losses),
        equal_bits=sum(ours == theirs for ours, theirs in losses),
        equal_bits_before_the_kill=sum(ours == theirs for ours, theirs in losses[:first]),
        last_losses=losses[-1],
        deterministic=settings.get("kernels.deterministic", False),
    )


if __name__ == "__main__":
    sys.exit(part(lambda measuring: measuring.measure("restart", lambda: restart(measuring))))
