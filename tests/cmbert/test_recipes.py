"""Every shipped recipe and DeepSpeed file loads; the large one is the paper's."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cmbert.config.deepspeed import load_deepspeed_file, zero_stage
from cmbert.config.load import load_recipe
from cmbert.plan.plan import Plan, make_plan

ROOT = Path(__file__).parents[2]
NO_RECIPES = ("clean", "tasks", "ablations")  # the folder of ablations holds two among its lists
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name not in NO_RECIPES)
RECIPES += [ROOT / "recipes" / "ablations" / name for name in ("small.toml", "medium.toml")]
ONE_NODE = {"quickstart/stage1.toml": 2, "quickstart/stage2.toml": 2, "ablations/small.toml": 1}  # processes
DEEPSPEED_FILES = sorted((ROOT / "ds_configs").glob("*.json"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def plan_of(name: str, num_gpus: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Plan a recipe where no run, tokenizer or shard set lies about."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / "recipes" / name)
    recipe = load_recipe(ROOT / "recipes" / name, [f"train.deepspeed={ROOT / recipe.train.deepspeed}"])
    monkeypatch.chdir(directory)
    return make_plan(recipe, num_gpus)


def test_all_are_here() -> None:
    shipped = {name_of(path) for path in RECIPES}
    assert shipped >= {f"recipes/{size}/stage{n}.toml" for size in ("quickstart", "base", "large") for n in (1, 2)}
    assert {path.name for path in DEEPSPEED_FILES} == {
        "zero1.json", "zero2.json", "zero2_offload.json", "zero3.json", "zero3_offload.json",
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_loads_and_names_a_deepspeed_file(path: Path) -> None:
    recipe = load_recipe(path)
    load_deepspeed_file(ROOT / recipe.train.deepspeed)
    if recipe.train.init_from:
        assert recipe.train.init_from == load_recipe(path.with_name("stage1.toml")).run_directory


@pytest.mark.parametrize("path", DEEPSPEED_FILES, ids=name_of)
def test_deepspeed_file_is_the_stage_it_is_named_after(path: Path) -> None:
    assert path.stem.removesuffix("_offload") == f"zero{zero_stage(load_deepspeed_file(path), path)}"


@pytest.mark.parametrize("name", [name_of(path).removeprefix("recipes/") for path in RECIPES])
def test_recipe_plans_on_a_node(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(name, ONE_NODE.get(name, 8), tmp_path, monkeypatch)
    assert all("not there yet" in note or "no checkpoint yet" in note for note in plan.notes)


def test_large_is_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan_of("large/stage1.toml", 56, tmp_path, monkeypatch)
    second = plan_of("large/stage2.toml", 56, tmp_path, monkeypatch)
    assert first.parameters == second.parameters
    assert first.parameters.total == 377_841_664
    assert first.parameters.embedding_share == pytest.approx(0.0888, abs=5e-5)
    assert (first.context_tokens, first.num_steps, first.total_tokens) == (1024, 217_983, 1_100_000_000_000)
    assert (second.context_tokens, second.num_steps, second.total_tokens) == (8192, 27_248, 100_000_000_000)
    assert (first.step_tokens, second.step_tokens) == (5_046_272, 3_670_016)
    assert round(second.flops_per_token.forward / 1e9, 2) == 1.03


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("size", ["large", "base"])
def test_the_layernorm_siblings_differ_in_the_norm_alone(size: str, stage: str) -> None:
    recipe, sibling = (load_recipe(ROOT / "recipes" / size / f"{folder}{stage}.toml") for folder in ("", "layernorm/"))
    assert (recipe.model.norm, sibling.model.norm) == ("rmsnorm", "layernorm")
    first = f"runs/{size}/layernorm/stage1" if stage == "stage2" else ""
    assert sibling == replace(
        recipe,
        run_directory=f"runs/{size}/layernorm/{stage}",
        model=replace(recipe.model, norm="layernorm"),
        train=replace(recipe.train, init_from=first),
    )


@pytest.mark.parametrize("size", ["large", "base"])
def test_every_number_says_where_it_comes_from(size: str) -> None:
    for path in sorted((ROOT / "recipes" / size).glob("*.toml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\w+ = -?[\d.]", line):
                assert re.search(r"# (P|T|R|D|F|ours|as in large)\b", line), f"{path.name}: {line}"
