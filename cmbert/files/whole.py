"""Files that are either whole or absent: write aside, fsync, rename. Text and JSON in UTF-8."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from cmbert.files.names import real
from cmbert.files.operations import HASH_BLOCK_BYTES, doing, rename, write_all


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    A link stays, and the file that it leads to is written. A device or a pipe is written to and never replaced.
    """
    path = real(path) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        with doing("open", path):
            descriptor = os.open(path, os.O_WRONLY)
        try:
            write_all(descriptor, data, path)
        finally:
            os.close(descriptor)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with doing("open", path):
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data, path)
            with doing("fsync", path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        rename(aside, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            aside.unlink(missing_ok=True)
        raise


def in_utf8(text: str) -> bytes:
    """Return a text's bytes; those of a file name that is not UTF-8 as \\udcff, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, in_utf8(text))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, Chinese text readable, whole or not at all."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, Chinese text readable; a number that is not finite, which JSON has not, becomes null."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a JSON value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def keep_beginning(path: Path, num_bytes: int) -> None:
    """Replace a file by its first bytes: whoever has the old one open writes into nothing from here on."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with doing("open", path):
        whole, kept = open(path, "rb"), open(aside, "wb")
    with doing("write", path), whole, kept:
        left = num_bytes
        while left:
            with doing("read", path):
                block = whole.read(min(left, HASH_BLOCK_BYTES))
            if not block:
                break
            kept.write(block)
            left -= len(block)
        kept.flush()
        with doing("fsync", path):
            os.fsync(kept.fileno())
    rename(aside, path)
