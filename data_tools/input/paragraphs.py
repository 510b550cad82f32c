"""Documents of .txt that are more than a line: blocks between blank lines, or whole files."""

from collections.abc import Iterator
from typing import BinaryIO

from cmbert.files.reading import BOM, MAX_LINE_BYTES
from data_tools.input.records import Record
from data_tools.input.streams import check_magic
from data_tools.storage.files import InputFile


def txt_documents(path: InputFile, stream: BinaryIO, document: str) -> Iterator[Record]:
    """Yield what lies between blank lines (document "block"), or everything ("file"), without lines that are blank.

    Of a document of more than MAX_LINE_BYTES one byte more than these is given.
    """
    start = position = 0
    lines, size = list[bytes](), 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if position == 0:
            check_magic(path, line)
        text = line.removeprefix(BOM) if position == 0 else line
        if document == "block" and text.isspace() and lines:
            yield Record(start, b"".join(lines))
            lines, size = [], 0
        elif size <= MAX_LINE_BYTES and (lines or not text.isspace()):
            start = start if lines else position
            lines.append(text[: MAX_LINE_BYTES + 1 - size])
            size += len(lines[-1])
        position += len(line)
    if text := b"".join(lines):
        yield Record(start, text)
