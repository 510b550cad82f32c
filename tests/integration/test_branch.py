"""A branch begins at a checkpoint of another run with its optimizer and place in the data, under its own recipe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.config.load import load_recipe
from cmbert.data.ledger import read_record
from cmbert.runs.ledger_view import print_step
from cmbert.runs.metrics import read_metrics
from cmbert.schedule import Schedule
from tests.integration.launching import REPEATED, settings, start, train, wait_for_output

STEPS, AT = 16, 4  # of the recipe, and where branches begin: its first checkpoint
LEVEL = ("schedule.warmup_tokens=1024", "mask.start_rate=0.2", "mask.peak_rate=0.2", "mask.end_rate=0.2")
DECAYING = settings("schedule.kind=warmup_stable_decay", "schedule.decay_tokens=1024", *LEVEL)


def figures(run: Path) -> dict[int, dict]:
    """Return what every step of a run came to."""
    return {record["step"]: {key: record[key] for key in REPEATED} for record in read_metrics(run)}


def last_state(run: Path) -> TrainState:
    checkpoint = find_checkpoint(run)
    assert checkpoint is not None
    return read_state(checkpoint)


def branch(parent: Path, recipe: Path, *arguments: str, at: int = AT, run: str = "branch", **how: object) -> str:
    directory = settings(f"run_directory={recipe.parent}/{run}")
    return train(recipe, *directory, "--branch", f"{parent}@{at}", *arguments, **how)


@pytest.fixture
def parent(recipe_file: Path, reference: Callable[..., Path]) -> Path:
    """A finished run with checkpoints of steps 8, 12 and 16, and 4 that is kept for good."""
    return reference(recipe_file, *settings("train.keep_every_tokens=2048"))


def test_the_same_recipe_gives_the_parents_later_steps(recipe_file: Path, tmp_path: Path, parent: Path) -> None:
    """Bit for bit, in one go and in two, the second of which needs no --branch."""
    said = branch(parent, recipe_file, "--max-steps", "6")
    assert f"a branch of {parent}@4, 2,048 tokens: its weights and optimizer; reads on at rows [32]" in said
    train(recipe_file, *settings(f"run_directory={tmp_path}/branch"))
    wanted = {step: record for step, record in figures(parent).items() if step >= AT}
    assert figures(tmp_path / "branch") == wanted
    assert len(wanted) == STEPS - AT
    theirs, ours = last_state(parent), last_state(tmp_path / "branch")
    assert (ours.step, ours.tokens, ours.rows, ours.source_rows) == (16, 8192, 128, theirs.source_rows)
