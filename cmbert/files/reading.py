"""Text files from outside, in UTF-8: lines, which only \\n and \\r\\n end, and JSON, whatever it holds."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from cmbert.errors import InputError
from cmbert.files.operations import doing, read_bytes

MAX_LINE_BYTES = 64_000_000  # a line is held in memory; the longest books have some 30 MB
HALF_PAIR = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}|\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)  # of surrogates, as JSON spells it
LONE_HALF = re.compile(  # likewise, without its other half
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
NEW_LINE = b"\n"
BOM = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SHOWN_CHARACTERS = 60  # of a value in a line of error


def every_line(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of every line, without its end; blank ones are lines too.

    Only \\n and \\r\\n end a line: U+2028, U+0085 and \\x0b are characters of it. A byte-order mark is dropped. Raises
    InputError naming file and line: no file, not UTF-8, a NUL, a line above MAX_LINE_BYTES.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'a folder; name a file in it' if path.is_dir() else 'no such file'}")
    number = 0
    with doing("open", path):
        file = open(path, "rb")
    with file:
        while raw := _next_line(file, path):
            number += 1
            line = _decoded(raw.removeprefix(BOM) if number == 1 else raw, f"{path}:{number}")
            yield number, line.rstrip("\r\n")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what every_line does of lines that are not blank. Raises InputError for a file without any, too."""
    number, is_blank = 0, True
    for number, line in every_line(path):
        if line.strip():
            is_blank = False
            yield number, line
    if is_blank:
        raise InputError(f"{path}: only blank lines" if number else f"{path}: empty file")


def _next_line(file: BinaryIO, path: Path) -> bytes:
    with doing("read", path):  # the disk's faults, not those of who asked for the line
        return file.readline(MAX_LINE_BYTES + 1)


def _decoded(raw: bytes, where: str) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise InputError(f"{where}: a line of more than {MAX_LINE_BYTES:,} bytes; cut it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"at byte {error.start} of the line"
        raise InputError(f"{where}: not UTF-8 {at}; convert the file to UTF-8: {_conversion(raw)}") from error
    if "\0" in text:
        raise InputError(f"{where}: holds a NUL character; remove it, or if the file is UTF-16: {_conversion(raw)}")
    return text


def _conversion(raw: bytes) -> str:
    """Return the command that makes UTF-8 of what is most likely none: Chinese text is in GB18030 else, or UTF-16."""
    found = "UTF-16" if raw.startswith(UTF_16_MARKS) or b"\0" in raw else "GB18030"
    return f"iconv -f {found} -t UTF-8"


def shown(value: Any) -> str:
    """Return a value as a line of error shows it: printable, and cut to SHOWN_CHARACTERS."""
    text = repr(value if not isinstance(value, str | bytes | list) else value[: 2 * SHOWN_CHARACTERS])
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def checked_text(value: Any, name: str, where: str) -> str:
    """Return a field of a record that must be text with something in it, and no NUL. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be text, found {shown(value)}")
    if not value.strip():
        raise InputError(f"{where}: {name} is empty")
    if "\0" in value:
        raise InputError(f"{where}: {name} holds a NUL character; remove it")
    return value


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds; integers that Python makes none of become decimal.Decimal.

    Raises ValueError, whose text is one line, for what is not JSON or not UTF-8, is nested too deeply, or holds half of
    a surrogate pair, which is no character: what cuts an emoji in two leaves one.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    value = json_value(text)
    try:
        if HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair (a cut emoji?), which is no character") from error
    return value


def json_value(text: str) -> Any:
    """Return what parse_json does, but half surrogate pairs as they are: for who looks at some fields alone."""
    try:
        try:
            return json.loads(text, strict=False)  # a raw tab or \x0b in a string is what somebody wrote there
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python makes no integer of more than some thousand digits
            return json.loads(text, strict=False, parse_int=Decimal)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _said(error: ValueError, what: str) -> str:
    return f"not {what}: {error}" if isinstance(error, json.JSONDecodeError) else str(error)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file:line" and the object of every line that is not blank. Raises InputError as lines_of does."""
    for number, line in lines_of(path):
        where = f"{path}:{number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            hint = "; a \\r alone ends no line" if "\r" in line else ""
            raise InputError(f"{where}: {_said(error, 'a JSON object')}{hint}") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object but {type(value).__name__}")
        yield where, value


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds. Raises InputError naming the file if it is missing, no JSON or not UTF-8."""
    raw = read_bytes(path)
    if b"\0" in raw and not raw.startswith(UTF_16_MARKS):
        raise InputError(f"{path}: holds a NUL character; remove it, or if the file is UTF-16: {_conversion(raw)}")
    try:
        return parse_json(raw.removeprefix(BOM))
    except UnicodeDecodeError as error:
        at = f"at byte {error.start}"
        raise InputError(f"{path}: not UTF-8 {at}; convert the file to UTF-8: {_conversion(raw)}") from error
    except ValueError as error:
        if not raw.strip():
            raise InputError(f"{path}: empty file") from error
        lone = LONE_HALF.search(raw) if "half of a surrogate pair" in str(error) else None
        where = f"{path}:{raw.count(NEW_LINE, 0, lone.start()) + 1}" if lone else str(path)
        raise InputError(f"{where}: {_said(error, 'JSON')}") from error
