"""Trainings with Muon under real launchers: plain torch at every ZeRO stage, kills, other numbers of ranks, skips."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.model.heads import MaskedLanguageModel, stacked_matrices
from cmbert.runs.metrics import read_metrics
from tests.integration.launching import deepspeed_file, losses, settings, start, trace, train

MUON = "optimizer.kind=muon"


def saved_bytes(run: Path) -> int:
    """Bytes of the optimizer files of a run's only checkpoint."""
    return sum(path.stat().st_size for path in run.glob("checkpoints/step_*/*optim_states.pt"))


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_killed_run_resumes_bitwise(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], stage: int
) -> None:
    setting = settings(deepspeed_file(tmp_path, stage, bf16=stage == 1), MUON)
    process = start(recipe_file, *setting, ranks=2, fault="kill:10:1")
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0, output
    assert "resuming at step" in train(recipe_file, *setting, ranks=2)
    assert trace(tmp_path / "run") == trace(reference(recipe_file, *setting, ranks=2))


def test_no_second_moment_of_a_matrix_is_saved(recipe_file: Path, tmp_path: Path) -> None:
    size = {}
    for kind in ("adamw", "muon"):
        run = tmp_path / kind
        train(recipe_file, *settings(f"optimizer.kind={kind}", f"run_directory={run}"), "--max-steps", "1")
        size[kind] = saved_bytes(run)
    matrices = sum(matrix.numel() for matrix in stacked_matrices(MaskedLanguageModel(load_recipe(recipe_file).model)))
    assert size["adamw"] - size["muon"] == pytest.approx(4 * matrices, rel=0.05)
    checkpoint = tmp_path / "adamw" / "checkpoints" / "step_000000001"
    elsewhere = settings(MUON, f"run_directory={tmp_path}/other")
    said = train(recipe_file, *elsewhere, "--resume", str(checkpoint), code=2)
    assert 'written with optimizer.kind = "adamw", and the recipe says "muon"' in said
    assert "Traceback" not in said
    assert not (tmp_path / "other").exists()
    said = train(recipe_file, *settings("optimizer.kind=adamw", f"run_directory={tmp_path}/muon"), code=2)
    assert 'optimizer.kind is "muon" there and "adamw" here' in said


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_elastic_resume(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], stage: int) -> None:
    """What differs is the order of sums over ranks, and with it now and then the rounding to bf16 of an element."""
    setting = settings(deepspeed_file(tmp_path, stage), "train.micro_batch_rows=1", MUON)
    train(recipe_file, *setting, "--max-steps", "5", ranks=2)
    train(recipe_file, *setting, "--max-steps", "5", ranks=4)
    assert "resumed a checkpoint of 4 ranks on 1" in train(recipe_file, *setting)
    unbroken = losses(reference(recipe_file, *settings(MUON)))
    assert losses(tmp_path / "run") == pytest.approx(unbroken, rel=1e-4)


def test_accumulated_as_at_once(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]) -> None:
    """Eight micro-batches of a row as one of eight: Muon steps once."""
    run = tmp_path / "rows"
    train(recipe_file, *settings(MUON, "train.micro_batch_rows=1", f"run_directory={run}"))
    at_once = reference(recipe_file, *settings(MUON, "train.micro_batch_rows=8"))
    assert losses(run) == pytest.approx(losses(at_once), rel=1e-4)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_moves_nothing(recipe_file: Path, tmp_path: Path, stage: int) -> None:
    """As if its rows had been left out, but for the schedule: at a constant rate, to the bit."""
    constant = ("schedule.kind=constant", "schedule.lr_min=1e-3", "schedule.warmup_tokens=0", "mask.warmup_tokens=0")
    level = ("mask.start_rate=0.2", "mask.peak_rate=0.2", "mask.end_rate=0.2")
    setting = settings(deepspeed_file(tmp_path, stage, bf16=True), MUON, *constant, *level)
    broken, left_out = (settings(f"run_directory={tmp_path}/{name}") for name in ("broken", "left_out"))
    output = train(recipe_file, *setting, *broken, "--max-steps", "8", ranks=2, fault="nan:4:1")
    assert "not applied (1 so far)" in output
    train(recipe_file, *setting, *left_out, "--max-steps", "7", "--skip-steps", "4:5", ranks=2)
    skipped, expected = read_metrics(tmp_path / "broken"), losses(tmp_path / "left_out")
    assert [record["skipped_steps"] for record in skipped] == [0] * 4 + [1] * 4
    assert [record["loss"] for record in skipped[:4] + skipped[5:]] == expected
