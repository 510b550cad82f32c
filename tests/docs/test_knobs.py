"""docs/knobs.md has every key of the schema, no other, and the values and sources of recipes/large; snippets load."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from cmbert.config.defaults import DERIVED
from cmbert.config.load import build, load_recipe
from cmbert.config.schema import Recipe
from cmbert.runs.directory import FREE_KEYS
from cmbert.transfer.tasks.task import load_task
from tests.docs.documents import ROOT, blocks, documents

PAGE = ROOT / "docs" / "knobs.md"
LARGE = [ROOT / "recipes" / "large" / f"stage{number}.toml" for number in (1, 2)]
SOURCES = {"P", "T", "R", "D", "F", "ours"}
MARKED = re.compile(r"(\w+) = .*?#\s*(P|T|R|D|F|ours)\b")


def schema_keys(cls: Any, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, hint in typing.get_type_hints(cls).items():
        inner = [item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item)]
        keys |= schema_keys(inner[0], f"{prefix}{name}.") if inner else {prefix + name}
    return keys


def page_rows() -> dict[str, dict[str, str]]:
    """Return the cells of every key by column, under its dotted name."""
    rows: dict[str, dict[str, str]] = {}
    section, columns = "", ["key", "stage 1", "stage 2", "unit", "why", "from"]
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## \[(\w+)\]", line):
            section = heading[1]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            row = dict(zip(columns, cells, strict=True))
            name, star = re.fullmatch(r"`([\w.]+)`( \*)?", row["key"]).groups()
            key, row["free"] = f"{section}.{name}", star or ""
            assert key not in rows, f"{key}: twice"
            rows[key] = row
    return rows


def values_of(recipe: Recipe, key: str) -> list[Any]:
    """Return the values of a dotted key: one, or that of each table of a list."""
    found: list[Any] = [recipe]
    for name in key.split("."):
        inner = [getattr(value, name) for value in found]
        found = [item for value in inner for item in (value if isinstance(value, tuple) else (value,))]
    return found


def as_written(cell: str, like: Any) -> Any:
    if isinstance(like, bool):
        return {"true": True, "false": False}[cell]
    return type(like)(cell.strip('"'))


def test_every_key_is_on_the_page_and_no_other() -> None:
    rows = page_rows()
    assert set(rows) | {"run_directory"} == schema_keys(Recipe)
    assert all(row["why"] for row in rows.values())
    assert {row["from"] for row in rows.values()} == SOURCES


def test_the_page_has_the_rule_of_every_derived_key() -> None:
    assert tuple(re.findall(r"^- `(\w+\.\w+)`: ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == DERIVED


@pytest.mark.parametrize("stage", [1, 2])
def test_the_values_are_those_of_the_large_recipe(stage: int) -> None:
    recipe = load_recipe(LARGE[stage - 1])
    assert f"`{recipe.run_directory}`" in PAGE.read_text(encoding="utf-8")
    for key, row in page_rows().items():
        cell = row[f"stage {stage}"] or row["stage 1"]
        values = values_of(recipe, key)
        if cell == "none" and not values:
            continue
        words = cell.split(", ") if len(set(values)) > 1 else [cell] * len(values)
        assert [as_written(word, value) for word, value in zip(words, values, strict=True)] == values, key


def test_the_keys_that_may_change_within_a_run_are_marked() -> None:
    assert {key for key, row in page_rows().items() if row["free"]} == set(FREE_KEYS)


def test_the_sources_are_those_that_the_recipe_names() -> None:
    rows, section = page_rows(), ""
    for line in LARGE[0].read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\[+([\w.]+)\]+", line):
            section = heading[1]
        elif marked := MARKED.match(line):
            assert rows[f"{section}.{marked[1]}"]["from"] == marked[2], line


SNIPPETS = [
    (path, first, "\n".join(lines))
    for path in documents()
    for first, language, lines in blocks(path)
    if language == "toml" or (not language and re.match(r"\[\w+\]", lines[0]))
]


@pytest.mark.parametrize(("path", "line", "text"), SNIPPETS, ids=lambda value: getattr(value, "name", None))
def test_toml_in_the_documents_loads(path: Path, line: int, text: str, tmp_path: Path) -> None:
    if not text.startswith("["):
        (tmp_path / "task.toml").write_text(text, encoding="utf-8")
        load_task(tmp_path / "task.toml")
        return
    base = tomllib.loads(LARGE[0].read_text(encoding="utf-8"))
    for section, values in tomllib.loads(text).items():
        base[section] = base.get(section, {}) | values
    build(Recipe, base, f"{path.name}:{line}")
