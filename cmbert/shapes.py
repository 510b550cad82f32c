"""JSON files that our own programs wrote, checked against Python's types: what was changed in them is one line."""

import dataclasses
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

from cmbert.errors import CmbertError
from cmbert.files import read_input
from cmbert.reading import parse_json

MOST = 2**63 - 1  # numpy's and everybody's signed 64 bits


def read_as(path: Path, hint: Any, *, error: type[CmbertError], remedy: str) -> Any:
    """Return the JSON value of a file, which `hint` describes (see `misfit`), or None if there is no file.

    Raises `error`, one line that ends in `remedy`, for what is not JSON or no such value.
    """
    raw = read_input(path)
    return None if raw is None else parse_as(raw, hint, str(path), error=error, remedy=remedy)


def parse_as(raw: str | bytes, hint: Any, where: str, *, error: type[CmbertError], remedy: str) -> Any:
    """Return the value of a JSON text, as `read_as` does. where: names it in the error."""
    try:
        value = parse_json(raw)
    except ValueError as fault:
        raise error(f"{where}: not valid JSON: {fault}; {remedy}") from fault
    if wrong := misfit(value, hint):
        raise error(f"{where}: {wrong}; {remedy}")
    return value


def misfit(value: Any, hint: Any, key: str = "") -> str | None:
    """Return what of a JSON value is not as its type says, as "key: found 'x', must be a whole number", or None.

    hint: int (0 to MOST), float (a finite number), str, bool, None, Any, Literal, unions, list[T], dict[str, T],
    TypedDicts, which may hold more, and dataclasses, as a table of their fields, which may not.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        found = [misfit(value, part, key) for part in arguments]
        return None if None in found else found[0]
    if origin is typing.Literal:
        return None if value in arguments and type(value) is not bool else _wrong(key, value, f"one of {arguments}")
    if origin is list or hint is list:
        pairs = list(enumerate(value)) if isinstance(value, list) else None
        return _within(pairs, arguments[-1:], key, value, "a list")
    if origin is dict or hint is dict:
        pairs = list(value.items()) if isinstance(value, dict) else None
        return _within(pairs, arguments[-1:], key, value, "an object")
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _misfit_of_fields(value, hint, key)
    return _misfit_of_scalar(value, hint, key)


def _within(items: Any, hints: tuple[Any, ...], key: str, value: Any, wanted: str) -> str | None:
    if items is None:
        return _wrong(key, value, wanted)
    faults = (misfit(item, hint, _below(key, name)) for name, item in items for hint in hints)
    return next((fault for fault in faults if fault), None)


def _misfit_of_fields(value: Any, hint: Any, key: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(key, value, "an object")
    hints = typing.get_type_hints(hint)
    if dataclasses.is_dataclass(hint):
        fields = dataclasses.fields(hint)
        optional = {f.name for f in fields if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}
        if foreign := [name for name in value if name not in hints]:
            return f"{_below(key, foreign[0])}: unknown key"
    else:
        optional = hint.__optional_keys__
    for name, part in hints.items():
        if name in value:
            if fault := misfit(value[name], part, _below(key, name)):
                return fault
        elif name not in optional:
            return f"{_below(key, name)}: missing key"
    return None


def _misfit_of_scalar(value: Any, hint: Any, key: str) -> str | None:
    if hint is int:
        fits = type(value) is int and 0 <= value <= MOST
        return None if fits else _wrong(key, value, f"a whole number from 0 to {MOST}")
    if hint is float:
        fits = abs(value) <= MOST if type(value) is int else type(value) is float and math.isfinite(value)
        return None if fits else _wrong(key, value, "a finite number")
    if hint is type(None):
        return None if value is None else _wrong(key, value, "null")
    assert hint in (str, bool)
    return None if type(value) is hint else _wrong(key, value, "a text" if hint is str else "true or false")


def _below(key: str, name: Any) -> str:
    if isinstance(name, int):
        return f"{key}[{name}]"
    shown = name if name.isprintable() and len(name) <= 100 else reprlib.repr(name)  # ours: a line stays a line
    return f"{key}.{shown}" if key else shown


def _wrong(key: str, value: Any, wanted: str) -> str:
    found = f"found {reprlib.repr(value)}, must be {wanted}"
    return f"{key}: {found}" if key else found
