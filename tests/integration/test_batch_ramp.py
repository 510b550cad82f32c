"""A batch ramp is the same run at any number of ranks, and a resume in the middle of it is bitwise."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from cmbert.runs.metrics import read_metrics
from tests.integration.launching import deepspeed_file, settings, trace, train

RAMP = ("train.ramp_start_rows=4", "train.ramp_increment_rows=2", "train.ramp_tokens=2000", "train.micro_batch_rows=1")
# two sizes below 8, 1,000 tokens each: 4 steps of 4 rows x 64, 3 steps of 6, then 8
ROWS = [4] * 4 + [6] * 3 + [8] * 12


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_ramp(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], stage: int) -> None:
    ramp = settings(*RAMP, deepspeed_file(tmp_path, stage))
    alone, together = reference(recipe_file, *ramp), tmp_path / "together"
    for _ in range(3):
        train(recipe_file, *ramp, *settings(f"run_directory={together}"), "--max-steps", "6", ranks=2)
    train(recipe_file, *ramp, *settings(f"run_directory={together}"), ranks=2)
    for run in (alone, together):
        records = read_metrics(run)
        assert [b["first_row"] - a["first_row"] for a, b in pairwise(records)] == ROWS[:-1]
        assert records[-1]["tokens"] == 64 * sum(ROWS)
    for a, b in zip(trace(alone), trace(together), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["masked_tokens"] == b["masked_tokens"]
    assert trace(together) == trace(reference(recipe_file, *ramp, ranks=2))
    refused = train(recipe_file, *ramp, *settings(f"run_directory={tmp_path}/x"), ranks=4, code=1)
    assert "train.ramp_start_rows, train.ramp_increment_rows: 8, 4 and 2 rows do not all divide over 4 GPUs" in refused


def test_loss_does_not_depend_on_how_a_step_is_cut(recipe_file: Path, tmp_path: Path) -> None:
    """1 rank x 4 micro-batches == 2 ranks x 2 == 4 ranks x 1, and a micro-batch without a masked token is safe."""
    found = []
    for ranks in (1, 2, 4):
        run = tmp_path / f"ranks{ranks}"
        few = ("mask.start_rate=0.01", "mask.peak_rate=0.01", "mask.end_rate=0.01")
        setting = settings(*few, f"run_directory={run}", deepspeed_file(tmp_path, 1))
        train(recipe_file, *setting, ranks=ranks)
        found.append(read_metrics(run))
    assert min(record["masked_tokens"] for record in found[0]) <= 6  # of 8 rows in 4 micro-batches
    for one, two, four in zip(*found, strict=True):
        assert two["masked_tokens"] == four["masked_tokens"] == one["masked_tokens"]
        for key in ("loss", "grad_norm"):
            assert two[key] == pytest.approx(one[key], rel=1e-5)
            assert four[key] == pytest.approx(one[key], rel=1e-5)


def test_a_world_size_takes_the_most_rows_that_divide(recipe_file: Path, tmp_path: Path) -> None:
    """4 rows a rank: at most 3 are 2, bit for bit as with 2, and one line says so."""
    found = []
    for most in (2, 3):
        run = tmp_path / f"most{most}"
        setting = settings(f"run_directory={run}", f"train.micro_batch_rows={most}", deepspeed_file(tmp_path, 1))
        output = train(recipe_file, *setting, "--max-steps", "4", ranks=2)
        said = "micro-batches of 2 rows: 4 rows a GPU do not divide into train.micro_batch_rows = 3"
        assert output.count(said) == (1 if most == 3 else 0)
        found.append(trace(run))
    assert found[0] == found[1]
