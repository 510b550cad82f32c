"""Gradients accumulated in fp32 at ZeRO 1, which DeepSpeed itself does by another optimizer and checkpoint form."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.weights import load_weights
from tests.integration.launching import losses, settings, trace, train


def accumulate(directory: Path, stage: int, dtype: str) -> str:
    """Return the setting that names a DeepSpeed file which accumulates in `dtype`."""
    table = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": dtype}, "communication_data_type": dtype}
    path = directory / f"zero{stage}_{dtype}.json"
    path.write_text(json.dumps({**table, "zero_optimization": {"stage": stage}}), encoding="utf-8")
    return f"train.deepspeed={path}"


def test_it_is_what_zero_2_does_and_what_bf16_does_not(recipe_file: Path, tmp_path: Path) -> None:
    found = {}
    for stage, dtype in ((1, "fp32"), (2, "fp32"), (1, "bf16")):
        run = tmp_path / f"{stage}{dtype}"
        small = ("train.micro_batch_rows=1", f"run_directory={run}")
        train(recipe_file, "--max-steps", "4", *settings(accumulate(tmp_path, stage, dtype), *small))
        found[stage, dtype] = trace(run)
    assert found[1, "fp32"] == found[2, "fp32"]  # one rank: nothing is rounded on the way to another
    assert found[1, "fp32"][0]["loss"] == found[1, "bf16"][0]["loss"]
    assert found[1, "fp32"][0]["grad_norm"] != found[1, "bf16"][0]["grad_norm"]


def test_its_checkpoints_resume_bitwise_on_other_ranks_and_as_weights(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]
) -> None:
    setting = (accumulate(tmp_path, 1, "fp32"), "train.micro_batch_rows=1")
    unbroken, broken = reference(recipe_file, *settings(*setting), ranks=2), tmp_path / "broken"
    resumed = settings(*setting, f"run_directory={broken}")
    train(recipe_file, "--max-steps", "9", *resumed, ranks=2)
    train(recipe_file, "--max-steps", "3", *resumed, ranks=2)
    assert trace(broken) == trace(unbroken)[:12]
    train(recipe_file, *resumed)
    assert losses(broken)[12:] == pytest.approx(losses(unbroken)[12:], rel=1e-3)  # bf16 sums in another order
    for name, weight in load_weights(require_checkpoint(broken)).items():
        assert weight.isfinite().all(), name
