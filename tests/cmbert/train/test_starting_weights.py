"""A stage begins from a run that is finished, or as its user says; what it begins from is said."""

import logging
import shutil
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.errors import CheckpointError, ConfigError
from cmbert.schedule import Schedule
from cmbert.train import starting_weights
from cmbert.train.starting_weights import check_starting_weights, starting_model
from tests.conftest import leave_run


def next_stage(recipe_file: Path, start: Path) -> Recipe:
    return load_recipe(recipe_file, [f"train.init_from={start}", f"run_directory={recipe_file.parent}/stage2"])


def test_an_unfinished_run_is_refused_unless_it_is_allowed(recipe_file: Path) -> None:
    run = leave_run(load_recipe(recipe_file), 6)
    assert Schedule.of(load_recipe(recipe_file)).num_steps == 16
    with pytest.raises(ConfigError) as refused:
        check_starting_weights(next_stage(recipe_file, run))
    assert str(refused.value) == (
        f"{run} (train.init_from) is not finished: its newest checkpoint, step_000000006, is of step 6 of 16; train "
        "it to its end, or start from there with --allow-unfinished"
    )
    check_starting_weights(next_stage(recipe_file, run), allow_unfinished=True)


def test_a_checkpoint_that_is_named_is_chosen(recipe_file: Path) -> None:
    run = leave_run(load_recipe(recipe_file), 6)
    check_starting_weights(next_stage(recipe_file, run / "checkpoints" / "step_000000006"))


def test_a_finished_run_is_taken(recipe_file: Path) -> None:
    check_starting_weights(next_stage(recipe_file, leave_run(load_recipe(recipe_file), 16)))


def test_a_run_without_a_checkpoint_is_refused_also_if_it_may_be_unfinished(recipe_file: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        check_starting_weights(next_stage(recipe_file, recipe_file.parent / "none"), allow_unfinished=True)


def test_the_log_names_the_checkpoint_and_its_step(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = leave_run(load_recipe(recipe_file), 6)
    fresh = starting_model(load_recipe(recipe_file)).state_dict()
    monkeypatch.setattr(starting_weights, "load_weights", lambda checkpoint: fresh)
    with caplog.at_level(logging.INFO, "cmbert"):
        starting_model(next_stage(recipe_file, run))
    assert f"weights of {run}/checkpoints/step_000000006 (step 6 of 16, the newest" in caplog.text


def test_weights_of_another_tokenizer_are_refused(recipe_file: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    run = leave_run(recipe, 16)
    other = shutil.copytree(tokenizer_directory, tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"NFC"', '"NFD"'), encoding="utf-8")  # as many ids
    with pytest.raises(ConfigError) as refused:
        check_starting_weights(load_recipe(recipe_file, [f"train.init_from={run}", f"data.tokenizer={other}"]))
    assert str(refused.value) == (
        f"data.tokenizer: {other} is not the tokenizer that the weights of {run} (train.init_from) were trained with; "
        f"that is {recipe.data.tokenizer}, or one that `data_tools extend-tokenizer` made of it"
    )
