"""Checkpoints of a real training are merged, and a stage starts from the mean."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cmbert.checkpoint.files import list_checkpoints
from cmbert.cli import main
from cmbert.export.lineage import read_lineage
from cmbert.report.stages import read_stages
from cmbert.runs.merged import read_merge
from cmbert.zero.engine import consolidate
from tests.integration.launching import deepspeed_file, losses, settings, train


def test_a_stage_starts_from_the_mean_of_real_checkpoints(
    recipe_file: Path, tmp_path: Path, other_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    scored = [f"evaluation.shards={other_shards}", "evaluation.every_steps=4", "train.keep_checkpoints=3"]
    train(recipe_file, *settings(*scored, deepspeed_file(tmp_path, 2)))
    steps = [int(path.name.removeprefix("step_")) for path in list_checkpoints(run / "checkpoints")]
    assert steps == [8, 12, 16]
    assert main(["merge-checkpoints", str(run), "--steps", "8,12,16", "--output", str(merged)]) == 0

    tables = [consolidate(path.parent, path.name) for path in list_checkpoints(run / "checkpoints")]
    for name, weight in load_file(merged / "model.safetensors").items():
        naive = torch.stack([table[name].double() for table in tables]).sum(0) / len(tables)
        assert torch.equal(weight, naive.float()), name

    merge = read_merge(merged)
    assert merge is not None
    assert len({part["heldout_loss"] for part in (*merge["steps"], merge["merged"])}) == 4
    output = tmp_path / "eval.json"
    assert main(["eval", str(merged), "--data", str(other_shards), "--output", str(output)]) == 0
    assert json.loads(output.read_text(encoding="utf-8"))["heldout_loss"] == merge["merged"]["heldout_loss"]
    (stage,) = read_lineage(merged).stages
    assert len(stage.records) == 16, "the run's record came along"
    assert [found.name for found in read_stages(tmp_path)] == ["run"], "a merged folder is no run of its own"

    following = settings(f"run_directory={tmp_path}/next", f"train.init_from={merged}")
    said = train(recipe_file, *following, "--max-steps", "1")
    assert f"weights of {merged} (merged from steps 8, 12, 16 of run)" in said
    assert f"reading on where {merged} ended, at rows [128]" in said
    assert losses(tmp_path / "next")[0] < losses(run)[0]
    refused = train(recipe_file, *settings(f"run_directory={merged}"), code=2)
    assert f"{merged}: holds weights alone, no run" in refused
    assert sorted(path.name for path in merged.iterdir()) == [
        "MANIFEST.json", "merge.json", "model.safetensors", "resolved.toml", "run", "state.json", "unigram.json",
    ]  # fmt: skip
