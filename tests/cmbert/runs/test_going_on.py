"""A run goes on in place if its recipe changed only for steps to come; else it is said what to type."""

import shutil
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.errors import ConfigError
from cmbert.runs.directory import check_belongs, find_resume
from tests.conftest import leave_run

STEPS = 16  # of the recipe: 512 tokens each
LEVEL = ("mask.start_rate=0.2", "mask.peak_rate=0.2", "mask.end_rate=0.2")
CONSTANT = ("schedule.kind=constant", "schedule.lr_min=1e-3", *LEVEL)
DECAYING = ("schedule.kind=warmup_stable_decay", "schedule.decay_tokens=2048", *LEVEL)  # the last 4 steps
TWICE = "train.total_tokens=16384"


@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        (CONSTANT, STEPS, [TWICE]),
        (CONSTANT, STEPS, [TWICE, *DECAYING, "schedule.lr_min=1e-4"]),
        (CONSTANT, 8, ["train.total_tokens=4096"]),
        (CONSTANT, STEPS, [TWICE, "data.changes=[{at_tokens=8192, weights=[1]}]"]),
        (DECAYING, 12, [TWICE]),
        (DECAYING, 12, ["schedule.decay_tokens=1024"]),
        ([], 2, ["schedule.gamma=0.5", "train.log_every_steps=3", "mask.warmup_tokens=1024"]),  # within the warm-up
    ],
)
def test_in_place(recipe_file: Path, before: list[str], step: int, after: list[str]) -> None:
    leave_run(load_recipe(recipe_file, before), step)
    check_belongs(load_recipe(recipe_file, [*before, *after]))


@pytest.mark.parametrize(
    ("before", "step", "after", "said"),
    [
        ([], STEPS, [TWICE], "16 steps are done, and the two disagree in the learning rate of step 3; to start"),
        (CONSTANT[:2], STEPS, [TWICE], "disagree in the mask rate of step 4;"),
        (CONSTANT, 8, ["train.total_tokens=2048"], "8 steps are done, and the two disagree in its end, after step 4;"),
        (CONSTANT, 8, ["train.rows_per_step=4"], "disagree in the rows of step 1;"),
        (CONSTANT, 8, ["data.changes=[{at_tokens=512, weights=[1]}]"], "disagree in data.changes;"),
        (DECAYING, 13, [TWICE], "disagree in the learning rate of step 13;"),
        (
            CONSTANT,
            STEPS,
            ["optimizer.weight_decay=0.5"],
            "0.01 there and 0.5 here; to start a run of 8,192 tokens from",
        ),
        (
            ["optimizer.kind=adamw"],
            8,
            ["optimizer.kind=muon"],
            'optimizer.kind is "adamw" there and "muon" here; to start a run of 8,192 tokens from',
        ),
        (["optimizer.kind=muon"], 8, ["optimizer.kind=stable_adamw"], 'optimizer.kind is "muon" there and "stable_ad'),
    ],
)
def test_from_the_weights(recipe_file: Path, before: list[str], step: int, after: list[str], said: str) -> None:
    run = leave_run(load_recipe(recipe_file, before), step)
    (run.parent / "run-2").mkdir()
    with pytest.raises(ConfigError) as refused:
        check_belongs(load_recipe(recipe_file, [*before, *after]))
    assert said in str(refused.value)
    unfinished = " --allow-unfinished" if step < STEPS else ""
    assert str(refused.value).endswith(
        f"these weights, the same command with --set run_directory={run}-3 --set train.init_from={run}{unfinished}"
    )


@pytest.mark.parametrize("key", ["train.seed=7", "model.num_layers=1"])
def test_another_run(recipe_file: Path, key: str) -> None:
    run = leave_run(load_recipe(recipe_file), STEPS)
    with pytest.raises(ConfigError) as refused:
        check_belongs(load_recipe(recipe_file, [key, "schedule.lr_max=2e-3"]))
    assert f"; make it another run, by the same command with --set run_directory={run}-2, or " in str(refused.value)
    assert "init_from" not in str(refused.value)


def test_back_to_before_the_decay(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, DECAYING)
    run = leave_run(recipe, 8)
    shutil.move(run / "checkpoints" / "step_000000008", run.parent / "kept")
    shutil.rmtree(run)
    leave_run(recipe, STEPS)
    kept = shutil.move(run.parent / "kept", run / "checkpoints" / "step_000000008")
    more = load_recipe(recipe_file, [*DECAYING, TWICE])
    with pytest.raises(ConfigError, match=f"to go back to where they agree, the same command with --resume {kept};"):
        find_resume(more, "auto")
    assert find_resume(more, str(kept)) == [Path(kept)]


def test_another_blend_from_here_on(recipe_file: Path, other_shards: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    sources = text.replace(
        "[schedule]", f'weight = 1.0\n[[data.sources]]\npath = "{other_shards}"\nweight = 1.0\n[schedule]'
    )
    recipe_file.write_text(sources, encoding="utf-8")
    leave_run(load_recipe(recipe_file), 8)
    recipe_file.write_text(sources.replace("weight = 1.0\n[schedule]", "weight = 3.0\n[schedule]"), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        check_belongs(load_recipe(recipe_file))
    change = "data.changes = [{ at_tokens = 4096, weights = [1.0, 3.0] }]"
    assert f"to mix otherwise from here on, set data.sources back and {change}; to start" in str(refused.value)
    recipe_file.write_text(sources, encoding="utf-8")
    check_belongs(load_recipe(recipe_file, [change.replace(" = [", "=[", 1)]))  # what was said to type does it
