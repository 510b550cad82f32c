"""JSON files that our own programs wrote, checked against Python's types: what was changed in them is one line."""

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmbert.errors import CmbertError, InputError
from cmbert.files.operations import read_input
from cmbert.files.reading import parse_json

MOST = 2**63 - 1  # numpy's and everybody's signed 64 bits


def read_as(
    path: Path, hint: Any, *, error: type[CmbertError], remedy: str, renamed: Mapping[str, str] | None = None
) -> Any:
    """Return the JSON value of a file, which `hint` describes (see `misfit`), or None if there is no file.

    renamed: names of today for keys that earlier versions wrote. Raises `error`, one line that ends in `remedy`, for
    what is not JSON or no such value.
    """
    raw = read_input(path)
    return None if raw is None else parse_as(raw, hint, str(path), error=error, remedy=remedy, renamed=renamed)


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """Return an object that this program wrote earlier, with `keys`. Raises InputError for anything else."""
    remedy = "this program did not write it; remove it and run the same command again"
    value = read_as(path, dict[str, Any], error=InputError, remedy=remedy)
    if value is None:
        raise InputError(f"{path}: no such file; run the same command again")
    if missing := [key for key in keys if key not in value]:
        raise InputError(f"{path}: holds no {missing[0]}; {remedy}")
    return value


def parse_as(
    raw: str | bytes,
    hint: Any,
    where: str,
    *,
    error: type[CmbertError],
    remedy: str,
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """Return the value of a JSON text, as `read_as` does. where: names it in the error."""
    try:
        value = parse_json(raw)
    except ValueError as fault:
        raise error(f"{where}: not valid JSON: {fault}; {remedy}") from fault
    rename_keys(value, renamed or {})
    if wrong := misfit(value, hint):
        raise error(f"{where}: {wrong}; {remedy}")
    return value


def rename_keys(value: Any, renamed: Mapping[str, str]) -> None:
    """Give keys of an object their names of today, in place; anything but an object stays as it is."""
    if isinstance(value, dict):
        for old in renamed.keys() & value.keys():
            value[renamed[old]] = value.pop(old)


def misfit(value: Any, hint: Any, key: str = "") -> str | None:
    """Return what of a JSON value is not as its type says, as "key: found 'x', must be a whole number", or None.

    hint: int (0 to MOST), float (a finite number), str, bool, None, Any, Literal, unions, list[T], tuple[T, ...],
    dict[str, T], TypedDicts, which may hold more, and dataclasses, as a table of their fields, which may not. A tuple
    is a list there, and of tuple[T, T] only the type of its values is checked.
    """
    fault = _check_of(hint)(value)
    if fault is None:
        return None
    for name in fault.path:
        key = _below(key, name)
    return f"{key}: {fault.said}" if key else fault.said


class Fault(NamedTuple):
    """Where in a value, and what is wrong there."""

    path: tuple[str | int, ...]
    said: str


Check = Callable[[Any], Fault | None]


@functools.cache  # a long run has a million records of one type
def _check_of(hint: Any) -> Check:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: None
    if origin in (typing.Union, types.UnionType):
        return _union([_check_of(part) for part in sorted(arguments, key=lambda part: part is not type(None))])
    if origin is typing.Literal:
        return lambda value: (
            None if value in arguments and type(value) is not bool else _wrong(value, f"one of {arguments}")
        )
    if origin in (list, tuple) or hint is list:
        return _container(list, enumerate, "a list", _check_of(arguments[0] if arguments else Any))
    if origin is dict or hint is dict:
        return _container(dict, dict.items, "an object", _check_of(arguments[1] if arguments else Any))
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _fields(hint)
    return _scalar(hint)


def _union(parts: list[Check]) -> Check:
    def check(value: Any) -> Fault | None:
        fault = None
        for part in parts:
            if (fault := part(value)) is None:
                return None
        return fault

    return check


def _container(kind: type, items: Callable[[Any], Iterable[tuple[Any, Any]]], wanted: str, inner: Check) -> Check:
    def check(value: Any) -> Fault | None:
        if not isinstance(value, kind):
            return _wrong(value, wanted)
        for name, item in items(value):
            if fault := inner(item):
                return Fault((name, *fault.path), fault.said)
        return None

    return check


def _fields(hint: Any) -> Check:
    checks = {name: _check_of(part) for name, part in typing.get_type_hints(hint).items()}
    is_closed = dataclasses.is_dataclass(hint)
    if dataclasses.is_dataclass(hint):
        fields = dataclasses.fields(hint)
        optional = {f.name for f in fields if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}
    else:
        optional = hint.__optional_keys__

    def check(value: Any) -> Fault | None:
        if not isinstance(value, dict):
            return _wrong(value, "an object")
        if is_closed and (foreign := [name for name in value if name not in checks]):
            return Fault((foreign[0],), "unknown key")
        for name, inner in checks.items():
            if name in value:
                if fault := inner(value[name]):
                    return Fault((name, *fault.path), fault.said)
            elif name not in optional:
                return Fault((name,), "missing key")
        return None

    return check


def _scalar(hint: Any) -> Check:
    fits: Callable[[Any], bool]
    if hint is int:
        fits, wanted = lambda value: type(value) is int and 0 <= value <= MOST, f"a whole number from 0 to {MOST}"
    elif hint is float:
        fits, wanted = _is_number, "a finite number"
    elif hint is type(None):
        fits, wanted = lambda value: value is None, "null"
    else:
        assert hint in (str, bool)
        fits, wanted = lambda value: type(value) is hint, "a text" if hint is str else "true or false"
    return lambda value: None if fits(value) else _wrong(value, wanted)


def _is_number(value: Any) -> bool:
    return abs(value) <= MOST if type(value) is int else type(value) is float and math.isfinite(value)


def _below(key: str, name: Any) -> str:
    if isinstance(name, int):
        return f"{key}[{name}]"
    return f"{key}.{shown_key(name)}" if key else shown_key(name)


def shown_key(name: str) -> str:
    """Return a key as an error shows it: a line stays a line, and a short one."""
    return name if name.isprintable() and len(name) <= 100 else reprlib.repr(name)


def _wrong(value: Any, wanted: str) -> Fault:
    return Fault((), f"found {reprlib.repr(value)}, must be {wanted}")
