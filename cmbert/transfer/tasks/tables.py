"""Records of a file: CSV (RFC 4180), TSV or JSON lines -> fields by name, with file and line for an error."""

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.files.reading import MAX_LINE_BYTES, every_line, json_lines, lines_of, shown
from cmbert.transfer.tasks.fields import shown_names

SEPARATORS = {".csv": "commas", ".tsv": "tabs"}


def is_table(path: Path) -> bool:
    """Return whether a file has columns under a header, by its name."""
    return path.suffix.lower() in SEPARATORS


def records(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file:line" and fields of each record; of a row over several lines the first.

    needed: columns that a table must have. Raises InputError: a file that is not read, a header that names a column
    twice or lacks one, a row of more or fewer cells, a quote that is not closed.
    """
    if not is_table(path):
        yield from json_lines(path)
        return
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _tsv_rows(path)
    number, first = next(rows, (1, []))
    if not first:
        raise InputError(f"{path}: holds no row")
    header = [name.strip() for name in first]
    _check_header(header, needed, path, f"{path}:{number}")
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: has {len(row)} columns, the header {len(header)}")
        yield f"{path}:{number}", dict(zip(header, row, strict=True))


def _check_header(header: list[str], needed: Sequence[str], path: Path, where: str) -> None:
    if len(set(header)) < len(header):
        raise InputError(f"{where}: the header names a column twice")
    for name in needed:
        if name in header:
            continue
        near = difflib.get_close_matches(name, header, n=1)
        remedy = f"did you mean {shown(near[0])}? " if near else ""
        said = f"there are: {shown_names(', '.join(header))}"
        if len(header) == 1:
            said = f"there is one alone, {shown(header[0])}; columns of a {path.suffix} file have "
            said += f"{SEPARATORS[path.suffix.lower()]} between them"
        raise InputError(f"{where}: no column {shown(name)}; {remedy}{said}")


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines_of(path):
        yield number, line.split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number of the first line, and cells, of every row that has something in it."""
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own is 131,072 characters
    reader = csv.reader((f"{line}\n" for _, line in every_line(path)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            remedy = 'a cell with a quote " in it stands in quotes, and has that quote twice'
            raise InputError(f"{path}:{number}: not CSV: {error}; {remedy}") from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield number, row
