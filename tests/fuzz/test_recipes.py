"""Recipes, `--set` and DeepSpeed files as people may write them: what is accepted works, up to a plan and a row."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cmbert.ablation.lists import load_list, plan_runs
from cmbert.config.deepspeed import load_deepspeed_file, resolve_deepspeed
from cmbert.config.load import load_recipe, read_table, read_toml
from cmbert.config.ranges import RANGES
from cmbert.config.schema import Recipe
from cmbert.data.reader import open_reader
from cmbert.errors import ConfigError
from cmbert.plan.plan import make_plan
from cmbert.schedule import Schedule
from cmbert.tokenizer import load_tokenizer
from data_tools.clean.config import load_clean_config
from tests.fuzz.doors import (
    ODD_VALUES,
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
)

ROOT = Path(__file__).parents[2]
DEEPSPEED = json.loads((ROOT / "ds_configs" / "zero3_offload.json").read_text(encoding="utf-8")) | {
    "communication_data_type": "fp32",
    "data_types": {"grad_accum_dtype": "fp32"},
    "timers": {"throughput": {"enabled": True}},
    "aio": {"block_size": 1048576},
    "flops_profiler": {"enabled": False, "module_depth": -1},
    "comms_logger": {"enabled": False, "prof_ops": []},
}
SHIPPED = sorted((ROOT / "recipes").glob("*/stage*.toml"))
NOT_TOML = (None, 10**400)
ODD = (  # what TOML can say
    *(value for value in ODD_VALUES if value not in NOT_TOML and value not in ("\ud83d", [None])),
    1e15, 2**20, 1024, 8, 3, 7.5, 1e-9, "auto", "none", "\u0000", "a\nb",
)  # fmt: skip


def toml_bytes(table: Any) -> bytes:
    return tomli_w.dumps(table).encode() if isinstance(table, dict) else tomli_w.dumps({"": table}).encode()


def tables(*valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy of TOML files: one of `valid` with other values in it, or its bytes damaged."""
    changed = st.sampled_from(valid).flatmap(lambda table: damaged_values(table, ODD)).map(toml_bytes)
    return st.one_of(changed, changed, changed, damaged_bytes(*map(toml_bytes, valid)))


def use(recipe: Recipe) -> None:
    """Do with a recipe what a run does first."""
    schedule = Schedule.of(recipe)
    last = schedule.num_steps - 1
    for step in (0, last // 2, last):
        assert 0 <= schedule.learning_rate(step) <= recipe.schedule.lr_max * (1 + 1e-9)
        assert 0 <= schedule.mask_rate(step) <= 1
    accepts_or_says(lambda: resolve_deepspeed(recipe, 1))
    accepts_or_says(lambda: resolve_deepspeed(recipe, 3))
    accepts_or_says(lambda: make_plan(recipe, 2))


@given(data=st.data())
@inputs_at_this_door(share=0.3)
def test_recipes(tmp_path: Path, recipe_file: Path, data: st.DataObject) -> None:
    path = tmp_path / "changed.toml"
    path.write_bytes(data.draw(tables(tomllib.loads(recipe_file.read_text(encoding="utf-8")))))
    recipe = accepts_or_says(lambda: load_recipe(path), str(path))
    if recipe is not None:
        use(recipe)


@given(raw=tables(*map(read_table, SHIPPED)))
@inputs_at_this_door(share=0.7)
def test_shipped_recipes(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "changed.toml"
    path.write_bytes(raw)
    accepts_or_says(lambda: load_recipe(path), str(path))


KEYS = (*RANGES, "run_directory", "data.tokenizer", "train.deepspeed", "kernels.compile", "mask.unit", "data.sources")
WORDS = (
    "", "0", "-1", "1e999", "nan", "inf", "true", "[]", "{}", "''", '"', "1_0", "0x7fffffffffffffff", "=", "2**3",
    "1\n2", "#", "[[", "1979-05-27", "1" * 5000, "a.b=c", "\udcff", "\0", " 5 ",
)  # fmt: skip


@given(
    key=st.one_of(st.sampled_from(KEYS), st.text(max_size=12)),
    value=st.one_of(st.sampled_from(WORDS), st.text(max_size=8)),
    equals=st.sampled_from(["=", "", " = ", "=="]),
)
@inputs_at_this_door()
def test_overrides(recipe_file: Path, key: str, value: str, equals: str) -> None:
    accepts_or_says(lambda: load_recipe(recipe_file, [f"{key}{equals}{value}"]), str(recipe_file), "--set")


PLACES = [
    (field.name, inner.name)
    for field in dataclasses.fields(Recipe)
    if dataclasses.is_dataclass(field.type)
    for inner in dataclasses.fields(field.type)
]
EDGES = (0, -1, 1, 8, 2**20, 2**62, 0.0, 0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"), True, "", [])


@given(place=st.sampled_from(PLACES), value=st.sampled_from(EDGES))
@inputs_at_this_door()
def test_every_number_at_the_edge_works_or_is_named(
    tmp_path: Path, recipe_file: Path, place: tuple[str, str], value: Any
) -> None:
    table = dataclasses.asdict(load_recipe(recipe_file))
    section, key = place
    table[section][key] = value
    path = tmp_path / "edge.toml"
    path.write_bytes(toml_bytes(table))
    recipe = accepts_or_says(lambda: load_recipe(path), key, f"{path}: {section}.")
    if recipe is not None:
        use(recipe)


@given(data=st.data())
@inputs_at_this_door(share=0.1)
def test_accepted_data_can_be_read(tmp_path: Path, recipe_file: Path, data: st.DataObject) -> None:
    table = tomllib.loads(recipe_file.read_text(encoding="utf-8"))
    for key, least, most in (("context_tokens", 8, 64), ("shuffle_block_rows", 1, 999), ("shuffle_blocks", 1, 99)):
        table["data"][key] = data.draw(st.sampled_from([least, most]) | st.integers(least, most))
    path = tmp_path / "changed.toml"
    path.write_bytes(toml_bytes(table))
    recipe = load_recipe(path)
    reader = open_reader(recipe.data, recipe.mask, load_tokenizer(recipe.data.tokenizer), recipe.train.seed)
    batch = reader.micro_batch([0, reader.blend.sources[0].num_rows - 1], 0.3)
    assert len(batch.input_ids) == 2 * recipe.data.context_tokens


@given(raw=damaged_json(DEEPSPEED))
@inputs_at_this_door()
def test_deepspeed_files(tmp_path: Path, recipe_file: Path, raw: bytes) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(raw)
    table = accepts_or_says(lambda: load_deepspeed_file(path), str(path))
    recipe = load_recipe(recipe_file)
    resolved = accepts_or_says(lambda: resolve_deepspeed(recipe, 1), str(path))
    assert (table is None) == (resolved is None)
    if resolved is not None:
        assert type(resolved["zero_optimization"]["stage"]) is int
        assert type(resolved.get("bf16", {}).get("enabled", False)) is bool


def load_all_runs(path: Path) -> object:
    found = load_list(path, ROOT / "recipes" / "ablations" / "small.toml")
    return plan_runs(found, path, path.parent, min(found.seeds, 2))


OTHERS = {
    "clean": (load_clean_config, sorted((ROOT / "recipes" / "large" / "clean").glob("*.toml"))),
    "ablation": (load_all_runs, sorted((ROOT / "recipes" / "ablations").glob("*.toml"))),
}


@given(data=st.data(), kind=st.sampled_from(sorted(OTHERS)))
@inputs_at_this_door()
def test_other_tables(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    load, paths = OTHERS[kind]
    path = tmp_path / "changed.toml"
    path.write_bytes(data.draw(tables(*(read_toml(file) for file in paths))))
    accepts_or_says(lambda: load(path), str(tmp_path))


def test_an_odd_file_is_no_traceback(tmp_path: Path) -> None:
    """A folder, nothing, and a name that no file can have."""
    (tmp_path / "folder.toml").mkdir()
    for path in (tmp_path / "folder.toml", tmp_path / "no.toml", Path("a\0b"), Path("好" * 300)):
        with pytest.raises(ConfigError, match="no such recipe"):
            load_recipe(path)
