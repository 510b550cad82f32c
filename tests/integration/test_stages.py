"""A stage starts from the weights of the one before, of the same size or a smaller one; a wrong start is one line."""

from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from tests.integration.launching import deepspeed_file, losses, settings, train


def test_stage_two_starts_from_stage_one_and_finished_stages_say_so(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file)
    stage2 = tmp_path / "stage2.toml"
    stage2.write_text(
        f"""
extends = "{recipe_file}"
run_directory = "{tmp_path}/stage2"
[data]
context_tokens = 256
[model]
rope_base_global = 160000.0
[train]
rows_per_step = 2
init_from = "{tmp_path}/run"
""",
        encoding="utf-8",
    )
    said = train(stage2)
    assert f"weights of {tmp_path}/run/checkpoints/step_000000016 (step 16 of 16, the run's last)" in said
    first, second = losses(tmp_path / "run"), losses(tmp_path / "stage2")
    assert second[0] < first[0] - 0.05  # it starts where stage 1 ended, not from scratch
    assert "already finished" in train(stage2)
    assert losses(tmp_path / "stage2") == second


def test_wrong_starts_are_one_line_and_leave_nothing(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = train(recipe_file, "--set", f"train.init_from={tmp_path}/nowhere", code=2)
    assert "no checkpoint there" in missing
    assert not (tmp_path / "run").exists()
    absent = train(recipe_file, "--set", "kernels.attention=flash_attn_3", code=2)
    assert "kernels.attention: 'flash_attn_3' cannot run on" in absent
    gathered = train(recipe_file, "--set", "kernels.compile=true", "--set", deepspeed_file(tmp_path, 3), code=2)
    assert "kernels.compile: torch.compile cannot follow ZeRO 3" in gathered
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    varies = train(recipe_file, "--set", "kernels.deterministic=true", code=2)
    assert "kernels.deterministic: CUBLAS_WORKSPACE_CONFIG=:0:0 lets cuBLAS vary" in varies
    assert not (tmp_path / "run").exists()
    train(recipe_file, "--max-steps", "1")
    other = train(recipe_file, "--set", "schedule.lr_max=5e-3", code=2)
    assert f"{tmp_path}/run: belongs to another recipe: schedule.lr_max is 0.001 there and 0.005 here; 1 step" in other
    assert other.count("\n") == 1


def test_a_larger_model_starts_from_a_smaller_ones_weights(recipe_file: Path, tmp_path: Path) -> None:
    train(recipe_file)
    model = load_recipe(recipe_file).model
    width, heads = 2 * model.hidden_size, 2 * model.num_heads
    larger = (f"model.hidden_size={width}", f"model.num_heads={heads}", f"run_directory={tmp_path}/larger")
    shape = settings(*larger)
    start = ["--set", f"train.init_from={tmp_path}/run"]
    refused = train(recipe_file, *shape, *start, code=2)
    assert f"model.hidden_size: {width}, but {tmp_path}/run (train.init_from) has {model.hidden_size}" in refused
    assert "set train.init_tiling = true" in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "larger").exists()
    output = train(recipe_file, *shape, *start, "--set", "train.init_tiling=true", "--max-steps", "1")
    assert f"tiled {tmp_path}/run" in output
    before = losses(tmp_path / "run")
    assert losses(tmp_path / "larger")[0] < before[0] - 0.15
    assert before[-1] < before[0] - 0.15  # so there was something to take over
