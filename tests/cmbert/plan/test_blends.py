"""Blends that nobody would write, planned: a plan, or one line that names what is wrong; never a traceback."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmbert.config.load import build_recipe
from cmbert.config.schema import Recipe
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.megatron import write_idx
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import CmbertError, ConfigError
from cmbert.plan.describe import describe
from cmbert.plan.page import write_plan_page
from cmbert.plan.plan import Plan, make_plan
from cmbert.plan.short import print_plan
from cmbert.tokenizer import Tokenizer

WEIGHTS = (0.0, 1e-300, 2.5e-5, 1.0, 1e15)


def make_set(folder: Path, lengths: list[int], tokenizer: Tokenizer, fingerprint: str | None = None) -> str:
    folder.mkdir()
    writer = ShardWriter(folder, "00000", token_dtype(384))
    for length in lengths:
        writer.append(np.full(length, 9), np.array([length]), np.ones(length, bool))
    about = {"fingerprint": fingerprint or tokenizer.fingerprint, "vocab_size": 384}
    write_manifest(folder, {"tokenizer": about, "shards": [writer.close()]})
    return str(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, str]:
    """One of each kind: a word, few rows, many rows, none, another tokenizer's, Megatron's, not there."""
    root = tmp_path_factory.mktemp("sets")
    found = {
        "word": make_set(root / "word", [1], tokenizer),
        "small": make_set(root / "small", [30, 500, 2], tokenizer),
        "large": make_set(root / "large", [60] * 4_000, tokenizer),
        "empty": make_set(root / "empty", [], tokenizer),
        "foreign": make_set(root / "foreign", [30], tokenizer, "another"),
        "megatron": str(root / "pair"),
        "missing": str(root / "missing"),
    }
    write_idx(root / "pair.idx", np.full(20, 50), np.dtype("<u2"))
    (root / "pair.bin").write_bytes(np.full(1_000, 9, "<u2").tobytes())
    return found


def recipe_of(
    tokenizer: Tokenizer, sources: list[dict[str, Any]], changes: list[dict[str, Any]] | None = None, **train: int
) -> Recipe:
    table = {
        "run_directory": "run",
        "model": {"num_layers": 3, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "vocab_size": 384},
        "data": {
            "tokenizer": str(tokenizer.directory),
            "sources": sources,
            "changes": changes or [],
            "context_tokens": 64,
        },
        "schedule": {"lr_max": 1e-3, "lr_min": 1e-4},
        "train": {"total_tokens": 50_000, "rows_per_step": 8, "micro_batch_rows": 2} | train,
    }
    return build_recipe(table, "recipe.toml")


def planned(recipe: Recipe) -> Plan | str:
    """Return the plan, told in every way there is, or the one line that refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            plan = make_plan(recipe, 1)
        except CmbertError as error:
            return str(error)
    assert describe(plan)
    return plan


@pytest.mark.parametrize("trial", range(40))
def test_any_blend_is_planned_or_refused(
    trial: int, sets: dict[str, str], tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(trial)
    sound = ["word", "small", "large", "megatron"]
    for _ in range(5):
        names = list(random.choice([*sound, "missing"], int(random.integers(1, 5))))
        if random.random() < 0.1:
            names.append(str(random.choice(["empty", "foreign"])))
        weights = random.choice(WEIGHTS[1:], len(names)) if random.random() < 0.6 else np.zeros(len(names))
        sources = [
            {"path": sets[name], "weight": float(weight), "max_epochs": float(random.choice([1e-9, 1.0, 1e12]))}
            for name, weight in zip(names, weights, strict=True)
        ]
        places = sorted(set(random.choice([1, 511, 512, 20_000, 10**9], int(random.integers(0, 4))).tolist()))
        changes = [{"at_tokens": at, "weights": random.choice(WEIGHTS, len(names)).tolist()} for at in places]
        total = int(random.choice([1, 511, 513, 50_000, 10**12]))
        try:
            recipe = recipe_of(tokenizer, sources, changes, total_tokens=total)
        except ConfigError:
            continue  # of a change all of whose weights are zero
        found = planned(recipe)
        if isinstance(found, Plan):
            print_plan(found, as_json=True)
            json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        else:
            assert "\n" not in found


def test_hundreds_of_sources(sets: dict[str, str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    names = ["word", "small", "large", "missing"] * 75
    for weight in (0.0, 1.0, 1e-300):
        found = planned(recipe_of(tokenizer, [{"path": sets[name], "weight": weight} for name in names]))
        if isinstance(found, Plan):
            assert len(found.sources) == 300
            write_plan_page(found, tmp_path / "plan.html")


def test_the_blend_changes_while_a_source_is_not_there_yet(sets: dict[str, str], tokenizer: Tokenizer) -> None:
    sources = [{"path": sets[name], "weight": 1.0} for name in ("missing", "large")]
    for weights in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0]):
        found = planned(recipe_of(tokenizer, sources, [{"at_tokens": 512, "weights": weights}]))
        assert isinstance(found, Plan)
        assert [source.rows is None for source in found.sources] == [True, False]
        assert [source.epochs for source in found.sources] == [None, None]
        assert any("not there yet" in note for note in found.notes)


def test_one_set_named_twice(sets: dict[str, str], tokenizer: Tokenizer) -> None:
    """Each of the two has its own share, and its own epochs."""
    sources = [{"path": sets["small"], "weight": 1.0}, {"path": sets["large"], "weight": 5.0}]
    twice = [*sources, {"path": sets["small"], "weight": 2.0}]
    found = planned(recipe_of(tokenizer, twice))
    assert isinstance(found, Plan)
    first, _, second = found.sources
    assert first.epochs is not None
    assert second.epochs is not None
    assert second.epochs == pytest.approx(2 * first.epochs, rel=0.05)


def test_paths_that_are_no_set(sets: dict[str, str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A folder without a manifest is as one that is not there, also beside an index of that name."""
    file = tmp_path / "file.txt"
    file.write_text("x", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.idx").write_text("x", encoding="utf-8")
    for path in (".", "/", "..", file, file / "below", tmp_path / "folder"):
        found = planned(recipe_of(tokenizer, [{"path": str(path)}, {"path": sets["small"]}]))
        assert isinstance(found, Plan), found
        assert found.sources[0].tokens is None
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.path: is empty"):
        recipe_of(tokenizer, [{"path": ""}, {"path": sets["small"]}])
