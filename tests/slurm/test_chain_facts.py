"""What submit_all.sh is told of recipes and of what they have made, and what is refused before a job is submitted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cmbert.data.shards.megatron import write_idx
from cmbert.tokenizer import Tokenizer
from tests.conftest import leave_run, make_shards
from tests.slurm.recipes import Recipes


@pytest.fixture
def recipes(recipe_file: Path) -> Recipes:
    return Recipes(recipe_file)


def test_progress_of_both_stages(recipes: Recipes) -> None:
    assert [line.split("\t")[-1] for line in recipes.describe().splitlines()[-2:]] == ["new", "new"]
    leave_run(recipes.first, 16)
    leave_run(recipes.second, 4)
    assert [line.split("\t")[-1] for line in recipes.describe().splitlines()[-2:]] == ["finished", "begun"]


def test_an_edited_recipe_is_refused_with_old_and_new_value(recipes: Recipes) -> None:
    leave_run(recipes.first, 16)
    edited = recipes.folder / "recipe.toml"
    edited.write_text(edited.read_text(encoding="utf-8").replace("lr_max = 1e-3", "lr_max = 2e-3"), encoding="utf-8")
    said = recipes.describe(code=2)
    assert f"{recipes.folder}/runs/stage1: belongs to another recipe: schedule.lr_max is 0.001 there and 0.002" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("made", ["stage2", "export", "eval.json"])
def test_what_was_made_from_an_earlier_stage_is_not_called_done(made: str, recipes: Recipes) -> None:
    root = recipes.folder / "runs"
    if made == "stage2":
        leave_run(recipes.second, 16)
    else:
        leave_run(recipes.first, 16)
        (root / made).mkdir()
    source = root / ("stage1" if made == "stage2" else "stage2")
    said = recipes.describe(code=2)
    assert said.startswith(f"submit_all: error: {root}/{made}: made from a {source} that was another or not finished")
    assert said.count("\n") == 1


def test_a_megatron_pair_is_there(recipes: Recipes) -> None:
    pair = recipes.folder / "pair"
    np.arange(5, 25, dtype=np.uint16).tofile(pair.with_suffix(".bin"))
    write_idx(pair.with_suffix(".idx"), np.array([12, 8]), np.dtype(np.uint16))
    base = recipes.folder / "recipe.toml"
    path = recipes.first.data.sources[0].path
    base.write_text(base.read_text(encoding="utf-8").replace(path, str(pair)), encoding="utf-8")
    described = [line.split("\t") for line in recipes.describe().splitlines()]
    assert [line[-1] for line in described if line[0] == "shards"] == ["there"]


def test_shards_of_another_tokenizer_are_refused(recipes: Recipes, tokenizer: Tokenizer) -> None:
    shards = make_shards(recipes.folder / "shards", dataclasses.replace(tokenizer, fingerprint="other"), lengths=[20])
    base = recipes.folder / "recipe.toml"
    path = recipes.first.data.sources[0].path
    base.write_text(base.read_text(encoding="utf-8").replace(path, str(shards)), encoding="utf-8")
    assert f"{shards}: made with another tokenizer" in recipes.describe(code=2)


@pytest.mark.parametrize("runs", ["runs/a\\tb", "runs/a\\nb", "-runs"])
def test_a_path_that_a_later_program_would_misread_is_refused(runs: str, recipes: Recipes) -> None:
    path = recipes.folder / "stage2.toml"
    text = path.read_text(encoding="utf-8").replace(f'"{recipes.folder}/runs/stage2"', f'"{runs}/stage2"')
    path.write_text(text, encoding="utf-8")
    said = recipes.describe(code=2)
    assert "begins with - or has a tab or a line's end in it; name it otherwise" in said
    assert said.count("\n") == 1
