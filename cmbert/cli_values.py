"""What people give on a command line, read; a mistake becomes argparse's one line. Shared by cmbert and data_tools."""

import argparse
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from cmbert.files.names import fault_of_name

MOST = 10**15  # of whatever is counted; more than any corpus has bytes, and 64 bits still count its thousands
MOST_NUMBER, LEAST_NUMBER = 1e15, 1e-15  # likewise of what is measured
MOST_TOKENS = 2**24  # of a row or a batch, as of a recipe's data.context_tokens
MOST_DOCUMENTS = 10**9  # of a plan alone; their lengths are 8 GB
MOST_SEED = 2**32 - 1  # NumPy's
Value = TypeVar("Value")


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` to `most`, written in plain digits."""

    def read(text: str) -> int:
        digits = re.fullmatch("0*([0-9]{1,20})", text)
        if not digits or not least <= int(digits[1]) <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be a whole number from {least} to {most}")
        return int(digits[1])

    return read


positive, not_negative, seed = whole(1), whole(0), whole(0, MOST_SEED)
tokens = whole(1, MOST_TOKENS)
documents = whole(0, MOST_DOCUMENTS)


def num_bytes(text: str) -> int:
    """Return a number of bytes, 1 or more: plain digits, or with a unit, for example 500KB, 10MB, 1.5GB, 2GiB."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)(?: ?([KMGT])(I)?B?|B)?", text.upper())
    if found and (found[2] or "." not in found[1]):
        exponent = "KMGT".index(found[2]) + 1 if found[2] else 0
        number = int(Decimal(found[1]) * (1024 if found[3] else 1000) ** exponent)
        if 1 <= number <= MOST:
            return number
    what = f"must be bytes from 1 to {MOST}, with a unit or without: 5000000, 500KB, 10MB, 1.5GB, 2GiB"
    raise argparse.ArgumentTypeError(f"{shown(text)}: {what}")


def words(text: str) -> list[str]:
    """Return the words between commas."""
    found = text.split(",")
    if not all(word.strip() for word in found):
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be names with commas, none of them empty")
    return found


def integers(text: str) -> list[int]:
    """Return the whole numbers, 1 or more, between commas."""
    return _listed(positive, text, "whole numbers of 1 or more with commas, for example 3,5")


def lengths(text: str) -> list[int]:
    """Return the lengths in tokens between commas."""
    return _listed(tokens, text, f"whole numbers from 1 to {MOST_TOKENS} with commas, for example 512,8192")


def any_lengths(text: str) -> list[int]:
    """Return the lengths in tokens between commas, none of an empty text."""
    return lengths(text) if text else []


def numbers(text: str) -> list[float]:
    """Return the numbers above 0 between commas."""
    return _listed(positive_number, text, "positive numbers with commas, for example 3e-5,5e-5")


def _listed(read: Callable[[str], Value], text: str, what: str) -> list[Value]:
    try:
        return [read(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be {what}") from error


def positive_number(text: str) -> float:
    """Return a number from LEAST_NUMBER to MOST_NUMBER."""
    try:
        value = float(text) if re.fullmatch("[-+.0-9eE]+", text) else -1.0
    except ValueError:
        value = -1.0
    if not LEAST_NUMBER <= value <= MOST_NUMBER:
        what = f"must be positive, a number from {LEAST_NUMBER:g} to {MOST_NUMBER:g}"
        raise argparse.ArgumentTypeError(f"{shown(text)} {what}")
    return value


def share(text: str) -> float:
    """Return a number above 0, at most 1."""
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be at most 1")
    return value


def step_range(text: str) -> tuple[int, int]:
    """Return the steps [first, last) of "first:last"."""
    first, _, last = text.partition(":")
    try:
        found = not_negative(first), not_negative(last)
    except argparse.ArgumentTypeError:
        found = 0, 0
    if found[0] >= found[1]:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be first:last, first below last, for example 500:505")
    return found


def any_path(text: str) -> Path:
    """Return the path of a file or folder; an empty name, which would be the working directory, is a mistake."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; name a file or folder")
    return Path(text)


def new_file(text: str) -> Path:
    """Return the path of a file to write; what can be known to be none is a mistake before the work, not after it."""
    path = any_path(text)
    if text.endswith(("/", "/.", "/..")) or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file")
    there = next(place for place in path.parents if place.exists() or place == place.parent)
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: nothing can be written in {there}")
    return path


def new_folder(text: str) -> Path:
    """Return a path that a folder may be renamed to; what is built for it lies beside it, by its name."""
    path = Path(text)
    if path.name.strip() in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r}: has no name of its own; give one, for example {path / 'out'}")
    return path


def utf8_path(text: str) -> Path:
    """Return the path of what PyTorch, or a library like it, reads or writes: they know no other names than UTF-8."""
    if fault := fault_of_name(text):
        raise argparse.ArgumentTypeError(fault)
    return any_path(text)


def units(text: str) -> list[str]:
    """Return the units that are hidden, each once: "word", "token" or both with a comma."""
    found = text.split(",")
    if not set(found) <= {"word", "token"}:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be word, token or word,token")
    return list(dict.fromkeys(found))


def shown(text: str) -> str:
    """Return what was given, so that its blanks and its length are seen on one line."""
    return text if re.fullmatch(r"[!-~]{1,40}", text) else repr(text if len(text) <= 40 else text[:40] + "...")
