"""Which keys of a table are unknown or missing: all of them in one line, each with its remedy."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import typing
from collections.abc import Collection, Iterator
from typing import Any

from cmbert.config.schema import RENAMED, Recipe
from cmbert.config.words import answer_to
from cmbert.errors import ConfigError

LIKE = 0.75  # difflib's ratio from which a spelling is near, ours: num_layer and n_heads are, max_steps is not
A_WHOLE_ONE = "`cmbert new NAME` writes a whole recipe"


def check_keys(cls: Any, table: dict[str, Any], where: str, derived: Collection[str] = ()) -> None:
    """Raise ConfigError that names every unknown and every missing key of `table`, made for dataclass `cls`.

    where: names the file. derived: dotted keys that may be missing although the dataclass has no default for them.
    """
    unknown = [f"{key}: {remedy}" for key, remedy in _unknown(cls, cls, table, "")]
    missing = [
        f"{key}: missing key ({meaning}); add it to the recipe"
        for key, meaning in _missing(cls, table, "")
        if key not in derived
    ]
    if unknown or missing:
        more = [A_WHOLE_ONE] if missing and cls is Recipe else []
        if len(missing) > 1:
            missing = [line.removesuffix("; add it to the recipe") for line in missing]
        raise ConfigError(f"{where}: {'; '.join([*unknown, *missing, *more])}")


def dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key and section of a dataclass, without the numbers of lists."""
    for name, hint in typing.get_type_hints(cls).items():
        yield prefix + name
        if inner := _dataclass_of(hint):
            yield from dotted_keys(inner, f"{prefix}{name}.")


def meaning(cls: Any, name: str) -> str:
    """Return the first words of the docstring of a dataclass's field; its name where it has none."""
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and getattr(field.target, "id", "") == name and isinstance(text, ast.Expr):
            return re.split(r" \(|; |\.(?:\s|$)", ast.literal_eval(text.value))[0]
    return name


def _unknown(root: Any, cls: Any, table: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            new = RENAMED.get(f"{prefix}{key}") if root is Recipe else None
            remedy = f"is called {new!r} now; rename it" if new else f"unknown key; {_remedy(root, hints, key)}"
            yield f"{prefix}{key}", remedy
        else:
            for inner, below, name in _tables_below(hints[key], value, f"{prefix}{key}"):
                yield from _unknown(root, inner, below, f"{name}.")


def _missing(cls: Any, table: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name in table:
            for inner, below, name in _tables_below(hints[item.name], table[item.name], f"{prefix}{item.name}"):
                yield from _missing(inner, below, f"{name}.")
        elif required and dataclasses.is_dataclass(hints[item.name]):
            yield from _missing(hints[item.name], {}, f"{prefix}{item.name}.")
        elif required:
            yield f"{prefix}{item.name}", meaning(cls, item.name)


def _tables_below(hint: Any, value: Any, name: str) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Yield dataclass, table and dotted name of what lies under a key; what has the wrong type is not judged here."""
    inner = _dataclass_of(hint)
    if inner and isinstance(value, dict) and dataclasses.is_dataclass(hint):
        yield inner, value, name
    elif inner and isinstance(value, list) and typing.get_origin(hint) is tuple:
        yield from ((inner, item, f"{name}[{index}]") for index, item in enumerate(value) if isinstance(item, dict))


def _dataclass_of(hint: Any) -> Any:
    """Return the dataclass of a section or of the tables of a list; None for a plain key."""
    return next((item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item)), None)


def _remedy(root: Any, hints: dict[str, Any], key: str) -> str:
    """Return what an unknown key may stand for: another trainer's word, a key of another section, a near spelling."""
    if root is Recipe:
        if answer := answer_to(key):
            return answer
        if elsewhere := [name for name in dotted_keys(root) if name.rpartition(".")[2] == key]:
            return f"it belongs elsewhere: {' or '.join(elsewhere)}"
    if near := difflib.get_close_matches(key, hints, n=1, cutoff=LIKE):
        return f"did you mean {near[0]!r}?"
    if root is Recipe:
        names = {name.rpartition(".")[2]: name for name in dotted_keys(root)}
        if near := difflib.get_close_matches(key, names, n=1, cutoff=LIKE):
            return f"did you mean {names[near[0]]}?"
    return f"known keys: {', '.join(hints)}"
