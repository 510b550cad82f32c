"""Rules for what a recipe leaves out: near the shipped recipes, from what is given, and never over it."""

import hashlib
import re
from pathlib import Path

import pytest

from cmbert.config.defaults import DERIVED, WITH_THE_RATE, lr_max, micro_batch_rows, num_heads, rows_per_step
from cmbert.config.load import load_recipe, write_resolved
from cmbert.config.ranges import RANGES
from cmbert.errors import ConfigError

ROOT = Path(__file__).parents[3]
LEAST = """
run_directory = "runs/mine"
model = { num_layers = 6, hidden_size = 384, vocab_size = 8192 }
train.total_tokens = 100_000_000
[data]
tokenizer = "tokenizer"
[[data.sources]]
path = "shards"
"""
RESOLVED = {  # first half of the SHA-256 of resolved.toml: what is trained by a shipped recipe may not change unseen
    "ablations/medium": "e907cf2689b293da73307ac58c7b8bfd",
    "ablations/short": "7abd53375bccb137d5bd4391f6b1288d",
    "ablations/small": "f98cc7928cda2ba2d8ac9348767e7445",
    "base/stage1": "030f6afbc829d5bb56b843bb91fd9c4f",
    "base/stage2": "287b877906b2e67ca0e5ebb29563c18f",
    "large/stage1": "ec50f60c083b71e0cbeee3f73dafbaa2",
    "large/stage2": "c7b31cff2255e2e56429c807b0c8dcf2",
    "quickstart/stage1": "a8b7abab03e41849745067d16dff64ae",
    "quickstart/stage2": "247a186f0283cac525abb31c8e9c6051",
}


@pytest.fixture
def least(tmp_path: Path) -> Path:
    (tmp_path / "least.toml").write_text(LEAST, encoding="utf-8")
    return tmp_path / "least.toml"


@pytest.mark.parametrize("name", RESOLVED)
def test_a_shipped_recipe_resolves_to_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    write_resolved(load_recipe(f"recipes/{name}.toml"), tmp_path / "resolved.toml")
    assert hashlib.sha256((tmp_path / "resolved.toml").read_bytes()).hexdigest()[:32] == RESOLVED[name]


def test_the_least_recipe_gets_the_rest_by_rule(least: Path) -> None:
    recipe = load_recipe(least)
    assert (recipe.model.num_heads, recipe.model.intermediate_size, recipe.data.context_tokens) == (6, 1024, 1024)
    assert (recipe.train.rows_per_step, recipe.train.micro_batch_rows) == (16, 16)
    assert (recipe.schedule.lr_max, recipe.schedule.lr_min, recipe.schedule.warmup_tokens) == (2e-3, 2e-4, 2_000_000)
    assert recipe.mask.warmup_tokens == 2_000_000


@pytest.mark.parametrize(("key", "asked"), [("model.hidden_size", "768"), ("train.total_tokens", "100_000_000_000")])
def test_what_is_overridden_moves_what_follows_from_it(least: Path, key: str, asked: str) -> None:
    plain, changed = load_recipe(least), load_recipe(least, [f"{key}={asked}"])
    if key == "model.hidden_size":
        assert (changed.model.num_heads, changed.model.intermediate_size) == (12, 2048)
        assert changed.schedule.lr_max < plain.schedule.lr_max
    else:
        assert changed.train.rows_per_step == 1024
        assert changed.schedule.warmup_tokens == 2_000_000_000


def test_what_is_given_stands(least: Path) -> None:
    given = {key: 2 for key in DERIVED if key not in ("schedule.lr_max", "schedule.lr_min")}
    given |= {"schedule.lr_max": 1e-2, "schedule.lr_min": 1e-3, "data.context_tokens": 16}
    recipe = load_recipe(least, [f"{key}={value}" for key, value in given.items()])
    for key, value in given.items():
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == value


def test_a_stated_rate_has_no_warm_up_as_ever(least: Path) -> None:
    recipe = load_recipe(least, ["schedule.lr_max=1e-3"])
    assert {key: getattr(getattr(recipe, key.split(".")[0]), key.split(".")[1]) for key in WITH_THE_RATE} == {
        "schedule.warmup_tokens": 0,
        "mask.warmup_tokens": 0,
    }
    assert recipe.schedule.lr_min == 1e-4


def test_a_stage_that_follows_another_learns_slower(least: Path) -> None:
    assert load_recipe(least, ["train.init_from=runs/one"]).schedule.lr_max == 3.3e-4
    assert load_recipe(least, ["train.init_from=runs/one", "train.init_tiling=true"]).schedule.lr_max == 2e-3


@pytest.mark.parametrize("name", [name for name in RESOLVED if name.endswith(("stage1", "medium"))])
def test_the_rules_come_near_the_shipped_recipes(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    model, train, context = recipe.model, recipe.train, recipe.data.context_tokens
    assert num_heads(model.hidden_size) == model.num_heads
    muon = 2 if recipe.optimizer.kind == "muon" else 1  # the rule is for AdamW; quickstart's rate with Muon is twice it
    assert muon * lr_max(model.hidden_size, model.num_layers) == pytest.approx(recipe.schedule.lr_max, rel=0.15)
    rows = rows_per_step(train.total_tokens, context)
    assert train.rows_per_step / 2 <= rows <= train.rows_per_step
    taken = micro_batch_rows(train.rows_per_step, context, model.hidden_size, model.num_layers)
    assert train.micro_batch_rows / 6 <= taken <= max(train.micro_batch_rows, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.hidden_size", "0"),
        ("model.hidden_size", "-64"),
        ("model.hidden_size", str(2**62)),
        ("model.num_layers", "-1"),
        ("model.max_length", "0"),
        ("train.total_tokens", "-5"),
        ("train.total_tokens", str(2**62)),
        ("train.rows_per_step", "0"),
    ],
)
def test_a_number_without_meaning_is_named_itself(least: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: -?\d+ must be"):
        load_recipe(least, [f"{key}={value}"])


def test_a_wrong_type_is_named_before_a_rule_reads_it(least: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden_size: must be int, found 'wide'"):
        load_recipe(least, ["model.hidden_size=wide"])


def test_every_derived_key_is_a_number_with_a_range() -> None:
    assert set(DERIVED) <= set(RANGES)
