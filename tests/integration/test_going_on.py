"""More tokens for a run whose schedule allows it: it goes on as if planned so from the start, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from tests.integration.launching import settings, trace, train

LEVEL = ("schedule.warmup_tokens=1024", "mask.start_rate=0.2", "mask.peak_rate=0.2", "mask.end_rate=0.2")
CONSTANT = settings("schedule.kind=constant", "schedule.lr_min=1e-3", *LEVEL)
DECAYING = settings("schedule.kind=warmup_stable_decay", "schedule.decay_tokens=1024", *LEVEL)
HALF = settings("train.total_tokens=4096")


def test_a_finished_constant_run(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    train(recipe_file, *CONSTANT, *HALF)
    assert "already finished, 8 steps; a larger train.total_tokens goes on" in train(recipe_file, *CONSTANT, *HALF)
    output = train(recipe_file, *CONSTANT)
    assert f"{run}: goes on with another recipe: train.total_tokens is 4096 there and 8192 here" in output
    assert trace(run) == trace(reference(recipe_file, *CONSTANT))
    assert load_recipe(run / "resolved.toml").train.total_tokens == 8192


def test_a_decayed_run_says_what_to_type_and_that_works(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file, *DECAYING, *HALF)
    refused = train(recipe_file, *DECAYING, code=2)
    assert refused.count("\n") == 1
    words = refused.partition("these weights, the same command with ")[2].split()
    assert tuple(words) == settings(f"run_directory={tmp_path}/run-2", f"train.init_from={tmp_path}/run")
    output = train(recipe_file, *DECAYING, *words)
    assert f"weights of {tmp_path}/run/checkpoints/step_000000008 (step 8 of 8, the run's last)" in output


@pytest.mark.slow
def test_a_run_stopped_before_its_decay(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]) -> None:
    train(recipe_file, *DECAYING, *HALF, "--max-steps", "6", ranks=2)
    train(recipe_file, *DECAYING, ranks=2)
    assert trace(tmp_path / "run") == trace(reference(recipe_file, *DECAYING, ranks=2))
