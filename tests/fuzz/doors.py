"""What may come in through a door: valid files, damaged as disks, editors and other people's programs damage them.

Each test of this folder takes a function that reads a file, gives it such inputs, and wants its result or one line of
error. `make test` tries INPUTS of them at each door; `FUZZ_INPUTS=10000 python -m pytest tests/fuzz` as many as asked.
"""

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from cmbert.errors import CmbertError

INPUTS = 100
HANG_SECONDS = 20  # of this process's own time, whatever runs beside it; most inputs take milliseconds
WAYS = ("cut", "drop", "double", "overwrite", "insert")
SPLICES = (  # what breaks readers of bytes: ends of lines, no characters, marks, numbers out of range
    b"\0", b"\n", b"\r", b"\r\n", b"\t", b'"', b"\\", b"[", b"{", b"}", b",", b":", b"-", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xff", b"\x80", b"\xed\xa0\xbd", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0b", b"\x1c", b"\\ud83d", b"NaN", b"1e999",
    b"9" * 5000, b"[" * 5000, b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7,
)  # fmt: skip
ODD_VALUES = (
    None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63 - 1, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), "", " ", "0", "\0", "\ud83d", "\u2028", "好" * 300, "../x", "/", "~", [], {}, [[]],
    [None], [0, -1], {"": ""}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def inputs_at_this_door(share: float = 1.0) -> settings:
    """Return how many inputs a test tries: `share` of INPUTS, or of FUZZ_INPUTS where that is set. Always the same."""
    count = int(os.environ.get("FUZZ_INPUTS", INPUTS))
    return settings(
        max_examples=max(1, round(count * share)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, *valid: bytes) -> bytes:
    """Draw one of `valid` after up to four damages: cut off, dropped, doubled, overwritten or inserted bytes."""
    data = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((1, 2, 4, 8, 64, len(data)))))
        splice = draw(st.one_of(st.sampled_from(SPLICES), st.binary(min_size=1, max_size=9)))
        way = draw(st.sampled_from(WAYS))
        middle = {"cut": b"", "drop": b"", "double": data[start:end] * 2, "overwrite": splice, "insert": splice}[way]
        rest = {"cut": b"", "overwrite": data[start + len(splice) :], "insert": data[start:]}.get(way, data[end:])
        data = data[:start] + middle + rest
    return data


@st.composite
def damaged_values(draw: st.DrawFn, valid: Any, odd: tuple[Any, ...] = ODD_VALUES) -> Any:
    """Draw `valid`, made of what JSON holds, changed at one to three places: replaced, dropped, renamed or doubled."""
    whole = [copy.deepcopy(valid)]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(_places(whole))))
        way = draw(st.sampled_from(("replace", "replace", "replace", "drop", "rename", "double")))
        if way == "replace" or holder is whole:
            holder[key] = copy.deepcopy(draw(st.sampled_from(odd)))
        elif way == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "id", "x", f"{key} ", key.upper())))] = holder[key]
            if way == "rename":
                del holder[key]
        else:
            holder.insert(key, copy.deepcopy(holder[key]))
    return whole[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a nested value as what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def json_bytes(value: Any, escaped: bool = True) -> bytes:
    """Return a value as a line of JSON, half surrogates and NaN as Python writes them: as \\uXXXX, or raw."""
    return json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


def damaged_json(valid: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy of JSON files: `valid` with other values in it, or its bytes damaged."""
    values = st.builds(json_bytes, damaged_values(valid), st.booleans())
    return st.one_of(values, values, damaged_bytes(json_bytes(valid, escaped=False)))


class HangError(Exception):
    """An input took HANG_SECONDS."""


@contextmanager
def _no_hang() -> Iterator[None]:
    def hang(_signal: int, _frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def accepts_or_says(door: Callable[[], Any], *names: str) -> Any:
    """Return what `door` returns, or None after one line of error that holds one of `names`; nothing else may come."""
    try:
        with _no_hang():
            return door()
    except CmbertError as error:
        said = str(error)
        assert len(said.splitlines()) == 1, f"not one line: {said!r}"
        assert said.encode("utf-8"), "cannot be printed"
        assert not names or any(name in said for name in names), f"names none of {names}: {said}"
        return None
