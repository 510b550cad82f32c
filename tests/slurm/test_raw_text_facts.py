"""What submit_all.sh is told of texts that are still to be cleaned, and of a tokenizer that is still to be trained."""

import re
import shutil
from pathlib import Path

import pytest

from cmbert.tokenizer import Tokenizer
from data_tools.clean.config import CleanConfig, DuplicatesConfig
from data_tools.clean.evaluation_sets import EvaluationSets
from data_tools.clean.passes import plan_passes
from data_tools.clean.setup import Setup
from data_tools.clean.tasks import filter_texts
from data_tools.input.tasks import plan_tasks
from tests.conftest import make_shards
from tests.slurm.recipes import Recipes

A, B = "laws", "reviews"


@pytest.fixture
def recipes(recipe_file: Path) -> Recipes:
    """Recipes of two corpora and held-out text; raw text and recipes for cleaning are there, nothing else."""
    folder = recipe_file.parent
    text = recipe_file.read_text(encoding="utf-8")
    text = re.sub(r'tokenizer = ".*"', f'tokenizer = "{folder}/tokenizer"', text)
    text = re.sub(
        r'\[\[data.sources\]\]\npath = ".*"',
        "\n".join(f'[[data.sources]]\npath = "{folder}/shards/{name}"' for name in (A, B)),
        text,
    )
    recipe_file.write_text(f'{text}[evaluation]\nshards = "{folder}/held"\n', encoding="utf-8")
    for name in (A, B):
        (folder / "raw" / name).mkdir(parents=True)
        (folder / "clean").mkdir(exist_ok=True)
        (folder / "clean" / f"{name}.toml").write_text(f'source = "{name}"\n', encoding="utf-8")
    return Recipes(recipe_file)


def facts(recipes: Recipes, name: str) -> list[list[str]]:
    """Return the fields of the lines of a name, with paths below the recipes' folder."""
    lines = [line.split("\t") for line in recipes.describe().splitlines()]
    return [[field.removeprefix(f"{recipes.folder}/") for field in fields] for first, *fields in lines if first == name]


def test_all_from_raw_text(recipes: Recipes) -> None:
    assert facts(recipes, "tokenizer") == [["tokenizer", "missing", f"text/{A}", "384"]]
    assert facts(recipes, "against") == [["text/held"]]
    assert facts(recipes, "holdout") == [
        [name, f"raw/{name}", f"clean/{name}.toml", f"text/held/{name}"] for name in (A, B)
    ]
    assert facts(recipes, "clean") == [
        [name, f"raw/{name}", f"clean/{name}.toml", f"text/{name}", "6"] for name in (A, B)
    ]
    assert [fields[-1] for fields in facts(recipes, "shards")] == ["missing"] * 3


def test_what_is_done_is_left_out(recipes: Recipes) -> None:
    text = recipes.folder / "text"
    (text / "held" / A).mkdir(parents=True)
    assert [fields[0] for fields in facts(recipes, "holdout")] == [B]
    (text / "held" / B).mkdir()
    assert facts(recipes, "holdout") == []
    (text / B).mkdir()
    assert [fields[0] for fields in facts(recipes, "clean")] == [A]
    (text / A).mkdir()
    assert facts(recipes, "clean") == []


def test_what_left_its_work_behind_is_done_once_more(recipes: Recipes, tokenizer: Tokenizer) -> None:
    """A kill between the last rename and the end; the same command then only removes what is left."""
    text, shards = recipes.folder / "text", recipes.folder / "shards"
    for folder in (text / "held" / A, text / "held" / f".{A}.clean", text / "held" / B):
        folder.mkdir(parents=True)
    assert [fields[0] for fields in facts(recipes, "holdout")] == [A]
    for folder in (text / A, text / f".{A}.clean", text / B):
        folder.mkdir()
    assert [fields[0] for fields in facts(recipes, "clean")] == [A]
    assert facts(recipes, "holdout") == []
    tokenizer_directory = recipes.folder / "tokenizer"
    shutil.copytree(tokenizer.directory, tokenizer_directory)
    make_shards(shards / A, tokenizer, lengths=[20])
    assert [fields[-1] for fields in facts(recipes, "shards")] == ["there", "missing", "missing"]
    assert facts(recipes, "clean") == []
    (shards / f".{A}.parts").mkdir()
    assert [fields[-1] for fields in facts(recipes, "shards")] == ["missing"] * 3


def test_nothing_is_held_out_of_the_others_once_one_is_cleaned(recipes: Recipes) -> None:
    """What is held out of B then could stand in A; B is cleaned against what was held out before."""
    text = recipes.folder / "text"
    (text / A).mkdir(parents=True)
    said = recipes.describe(code=2)
    assert f"{text}/held: missing, and {A} was cleaned without it" in said
    (text / "held" / A).mkdir(parents=True)
    assert facts(recipes, "holdout") == []
    assert [fields[0] for fields in facts(recipes, "clean")] == [B]


def test_the_folder_above_has_recipes_for_cleaning_too(recipes: Recipes) -> None:
    inner = recipes.folder / "layernorm"
    inner.mkdir()
    for name in ("stage1.toml", "stage2.toml"):
        (recipes.folder / name).rename(inner / name)
    assert f"\t{recipes.folder}/clean/{A}.toml\t" in recipes.describe(recipes=inner)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (f"raw/{B}", "put its raw text into {folder}/raw/reviews, and it is cleaned first"),
        (f"clean/{B}.toml", "{folder}/clean/reviews.toml: missing, it says how {folder}/raw/reviews is cleaned"),
    ],
)
def test_what_is_missing_is_named(missing: str, message: str, recipes: Recipes) -> None:
    path = recipes.folder / missing
    path.rmdir() if path.is_dir() else path.unlink()
    said = recipes.describe(code=2)
    assert message.format(folder=recipes.folder) in said
    assert said.count("\n") == 1


def test_a_mistake_in_a_recipe_for_cleaning_is_found_before_a_job_is_submitted(recipes: Recipes) -> None:
    path = recipes.folder / "clean" / f"{A}.toml"
    path.write_text("[quality]\nmin_character = 5\n", encoding="utf-8")
    assert f"{path}: quality.min_character: unknown key; did you mean 'min_characters'?" in recipes.describe(code=2)


def test_no_tokenizer_is_trained_beside_shards_of_another(recipes: Recipes, tokenizer: Tokenizer) -> None:
    make_shards(recipes.folder / "shards" / A, tokenizer, lengths=[20])
    (recipes.folder / "text" / "held").mkdir(parents=True)
    assert f"{recipes.folder}/tokenizer/tokenizer.json: no such file" in recipes.describe(code=2)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_the_chain_counts_the_passes_that_there_are(exact: bool, near: bool, recipes: Recipes, tmp_path: Path) -> None:
    path = recipes.folder / "clean" / f"{A}.toml"
    path.write_text(f"[duplicates]\nexact = {exact}\nnear = {near}\n".lower(), encoding="utf-8")
    config = CleanConfig(duplicates=DuplicatesConfig(exact=exact, near=near))
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"text": "今天天气很好。"}\n', encoding="utf-8")
    setup = Setup(work=tmp_path / "work", config=config, texts=tmp_path / "texts", held_out_texts=tmp_path / "held")
    (tmp_path / "work" / "texts").mkdir(parents=True)
    (tmp_path / "work" / "signatures").mkdir()
    num_passes = 0
    for current in plan_passes(setup, plan_tasks([raw]), plan_tasks([raw]), EvaluationSets()):
        num_passes += 1
        if current.task is filter_texts:
            filter_texts(current.items[0]._replace(setup=Setup(work=setup.work, config=config, texts=setup.texts)))
    assert num_passes == int(facts(recipes, "clean")[0][-1])
