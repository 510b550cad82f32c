"""Strict TOML -> Recipe. Unknown and missing keys and wrong types are a ConfigError naming file, key and remedy."""

import dataclasses
import difflib
import math
import os
import reprlib
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cmbert.config.check import check_model, check_recipe
from cmbert.config.deepspeed import same_deepspeed
from cmbert.config.defaults import DERIVED, fill_defaults
from cmbert.config.keys import check_keys
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.errors import IN_A_CLONE, ConfigError
from cmbert.files.names import real
from cmbert.files.operations import read_input
from cmbert.files.whole import write_text

Built = TypeVar("Built", Recipe, ModelConfig)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply "a.b=value" overrides, check it.

    A recipe may start with `extends = "other.toml"`: it then states only what differs. Like every path in it, that is
    relative to the working directory.
    Raises ConfigError.
    """
    path = Path(path)
    table = read_table(path)
    for override in overrides:
        _apply_override(table, override)
    return build_recipe(table, str(path))


def build_recipe(table: dict[str, Any], where: str) -> Recipe:
    """Build and check a recipe from its table; `where` names the file in a ConfigError."""
    return _checked(build(Recipe, table, where), check_recipe, where)


def build_model(table: dict[str, Any], where: str) -> ModelConfig:
    """Build and check a model's configuration alone; `where` names the file in a ConfigError."""
    return _checked(build(ModelConfig, table, where), check_model, where)


def _checked(built: Built, check: Callable[[Built], None], where: str) -> Built:
    try:
        check(built)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return built


def write_resolved(recipe: Recipe, path: Path) -> None:
    """Write every key of `recipe` with its value in force, as TOML that `load_recipe` reads back to an equal recipe."""
    import tomli_w  # not needed by a machine that only times models

    write_text(path, tomli_w.dumps(dataclasses.asdict(recipe)))


def differing_keys(first: Recipe, second: Recipe) -> list[str]:
    """Return the dotted keys whose values differ, in the order of the schema; a DeepSpeed file by what it says."""

    def flatten(value: Any, prefix: str) -> Iterable[tuple[str, Any]]:
        if not isinstance(value, dict):
            return [(prefix, value)]
        return [pair for key, inner in value.items() for pair in flatten(inner, f"{prefix}.{key}" if prefix else key)]

    left, right = (dict(flatten(dataclasses.asdict(recipe), "")) for recipe in (first, second))
    differing = [key for key in left if left[key] != right.get(key)]
    if same_deepspeed(first.train.deepspeed, second.train.deepspeed):
        return [key for key in differing if key != "train.deepspeed"]
    return differing


def read_toml(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """Read a TOML file, a `kind` of thing. Raises ConfigError when it is missing or malformed."""
    raw = read_input(path)
    if raw is None:
        raise ConfigError(f"{path}: no such {kind}; {_instead_of(path, kind)}")
    try:
        return _parse(raw.decode("utf-8"))
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, and Python's own for 4,301 digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _instead_of(path: Path, kind: str) -> str:
    """Return what to name instead of a file that is not there."""
    beside = [file.name for file in path.parent.glob("*.toml")] if os.path.isdir(path.parent) else []
    if near := difflib.get_close_matches(path.name, beside, n=1):
        return f"did you mean {path.with_name(near[0])}?"
    return IN_A_CLONE if kind == "recipe" else "write it, or name the file that you have"


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_table(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a TOML file and the one it extends, if it does, beneath it. Raises ConfigError."""
    table = read_toml(path)  # first, since a name may be one that no file has
    if real(path) in seen:
        raise ConfigError(f"{path}: extends: recipes extend each other in a circle; remove one extends")
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: must be a path in quotes")
    return merge(read_table(named_in(path, "extends", parent), (*seen, real(path))), table)


def named_in(path: Path, key: str, name: str) -> Path:
    """Return the recipe that `key` of file `path` names: like every path of a recipe, from the working directory on.

    Raises ConfigError when it is not there.
    """
    if not name or "\0" in name or os.path.exists(name):
        return Path(name)  # who reads it says what is wrong with it
    remedy = f'write {key} = "{path.parent / name}"' * os.path.isfile(path.parent / name)
    raise ConfigError(
        f"{path}: {key}: no {name} in the working directory, to which every path of a recipe is relative; "
        f"{remedy or 'change to the folder that has it, or write where it is'}"
    )


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the table `base` with `changes` laid over it, table by table; any other value replaces the one below."""
    merged = dict(base)
    for key, value in changes.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_tables else value
    return merged


def _apply_override(table: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must be key=value, for example --set train.seed=1")
    try:
        value = _parse(f"value = {raw}")["value"]
    except ValueError:
        value = raw  # a bare word is a string: paths need no quotes on a command line
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
    table[last] = value


def build(cls: Any, table: dict[str, Any], where: str) -> Any:
    """Build dataclass `cls` from a TOML table; a fault is named by `where` (a file) and its dotted key."""
    check_keys(cls, table, where, derived=DERIVED if cls is Recipe else ())
    values = _converted(cls, table, where)
    return _made(cls, fill_defaults(values) if cls is Recipe else values)


def _made(hint: Any, value: Any) -> Any:
    """Return `value` with dataclasses in place of its tables."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return typing.cast(Any, hint)(**{key: _made(hints[key], inner) for key, inner in value.items()})
    return tuple(_made(typing.get_args(hint)[0], item) for item in value) if isinstance(value, tuple) else value


def _converted(cls: Any, table: dict[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in table.items()}


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return `value` as the type of `hint` has it; tables stay tables."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key}: must be a table ([{key}])")
        return _converted(hint, value, where, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: {key}: must be a list ([[{key}]] tables)")
        return tuple(_convert(arguments[0], item, where, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{where}: {key}: {reprlib.repr(value)} is not one of {', '.join(map(repr, arguments))}{hint_text}"
            )
        return value
    assert not isinstance(hint, types.UnionType), "the schema has no optional fields"
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: {key}: a number of {value.bit_length()} bits; at most 63 have a meaning")
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: {key}: must be {hint.__name__}, found {reprlib.repr(value)}")
    if hint is str and "\0" in value:
        raise ConfigError(f"{where}: {key}: holds a NUL character; remove it")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {key}: {value} is not a number to compute with; give a finite one")
    return value
