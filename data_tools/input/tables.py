"""Rows of .csv and .tsv: a header, then a document a row; quoted fields may hold line breaks."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from cmbert.config.texts import DELIMITERS
from cmbert.errors import InputError
from cmbert.files.reading import BOM, MAX_LINE_BYTES, shown
from data_tools.input.records import BadRecordError, Record, Undecoded
from data_tools.input.streams import check_magic, kind_of, skip_line
from data_tools.storage.files import InputFile

QUOTING = "; a field that holds the delimiter, a quote or a line break stands in quotes, quotes in it doubled"
SHOWN_COLUMNS = 10


class _Lines:
    """The lines of a stream for csv.reader, bytes that are no UTF-8 escaped; `too_long` after one that was cut."""

    def __init__(self, path: InputFile, stream: BinaryIO):
        self.path, self.stream = path, stream
        self.too_long, self.number = False, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            skip_line(self.stream, None)
            self.too_long = True
        if self.number == 0:
            check_magic(self.path, line)
            line = line.removeprefix(BOM)
        self.number += 1
        return line.decode("utf-8", "surrogateescape")


def table_rows(path: InputFile, stream: BinaryIO, text_key: str, advice: str) -> Iterator[Record]:
    """Yield the rows below the header by column, the header being row 1 and blank rows none.

    A row that is none, or too long, holds what is wrong with it; advice: what to type for another column. Raises
    InputError without a header with `text_key`.
    """
    delimiter, lines = DELIMITERS[kind_of(path)], _Lines(path, stream)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = 0
    while True:
        number += 1
        value: dict[str, Undecoded] | BadRecordError
        try:
            row = next(reader, None)
        except csv.Error as error:
            row, value = [], BadRecordError("bad_row", f"not a row of {kind_of(path)} ({error}){QUOTING}")
        else:
            if row is None:
                return
            if not row:
                continue
            value = _fields(names, row) if names else {}
        if lines.too_long:
            value = BadRecordError("line_too_long", f"a line of more than {MAX_LINE_BYTES} bytes; cut the document")
            lines.too_long = False
        if names is not None:
            yield Record(number - 1, value, number)
            continue
        if isinstance(value, BadRecordError):
            raise InputError(f"{path}:{number}: the header: {value}") from value
        names = _header(path, row, text_key, advice)


def _header(path: InputFile, row: list[str], text_key: str, advice: str) -> list[str]:
    """Return the columns' names. Raises InputError when the text's is not one of them, or not UTF-8."""
    names = [name.strip() for name in row]
    try:
        "".join(names).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its first line is not UTF-8; if it is GBK: iconv -f GB18030 -t UTF-8") from error
    if names.count(text_key) != 1:
        found = "two columns" if text_key in names else "no column"
        listed = ", ".join(map(shown, names[:SHOWN_COLUMNS])) + (", ..." if len(names) > SHOWN_COLUMNS else "")
        raise InputError(
            f"{path}: {found} {text_key!r} in its first line, which must name the columns; it has {listed}{advice}"
        )
    return names


def _fields(names: list[str], row: list[str]) -> dict[str, Undecoded] | BadRecordError:
    if len(row) != len(names):
        return BadRecordError("bad_row", f"{len(row)} fields, the header has {len(names)}{QUOTING}")
    texts = (Undecoded(field.encode("utf-8", "surrogateescape")) for field in row)
    return dict(zip(names, texts, strict=True))
