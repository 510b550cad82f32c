"""Files -> documents: JSON lines (plain, gzip, zstd), parquet and text, in a stable order and bounded memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cmbert.errors import InputError
from cmbert.files.reading import BOM, MAX_LINE_BYTES
from data_tools.defaults import TXT_DOCUMENTS
from data_tools.input.arrays import array_records, begins_array
from data_tools.input.document import Document
from data_tools.input.paragraphs import txt_documents
from data_tools.input.records import BadRecordError, Field, Record, document_of, is_text_type, json_object, plain_values
from data_tools.input.streams import (
    READ_BYTES,
    check_magic,
    damages,
    is_compressed,
    kind_of,
    open_parquet,
    reading_parquet,
    skip_line,
    text_stream,
)
from data_tools.input.tables import table_rows
from data_tools.storage.files import InputFile, open_input

SEE_TEXT_KEY = " (see --text-key)"
CONVERT = "; if the file is GBK: iconv -f GB18030 -t UTF-8"
PARQUET_BATCH_ROWS = 256  # a few megabytes of long documents


class ByteRange(NamedTuple):
    """A part of a file: the records that begin in [start, end).

    The unit is bytes of text (decompressed where the file is compressed), or row groups of parquet; `end` None is the
    end of the file.
    """

    path: InputFile
    start: int = 0
    end: int | None = None


def _last_byte(span: ByteRange) -> int | None:
    """Return behind which byte of its file hardly more is read than `span` needs; None where that is unknown.

    Of parquet pyarrow says what it needs.
    """
    if kind_of(span.path) == "parquet":
        return 0
    return None if is_compressed(span.path) else span.end


def whole_files(files: Sequence[InputFile]) -> list[ByteRange]:
    """Return one byte range per file."""
    return [ByteRange(path) for path in files]


def reading_options(text_key: str, on_bad_line: str, txt_document: str) -> dict[str, Any]:
    """Return how text is read, as DocumentReader takes it and a record keeps it; what .txt holds only if it is said."""
    said = {} if txt_document == TXT_DOCUMENTS[0] else {"txt_document": txt_document}
    return {"text_key": text_key, "on_bad_line": on_bad_line, **said}


class DocumentReader:
    """Iterate over the documents of `ranges`.

    JSON lines: one object a line, its text under `text_key`, "id" and "source" optional; blank lines are no records.
    json: one array of such objects, or of texts. parquet, csv, tsv: the same names as columns. txt: each line that is
    not blank is a document; with txt_document="block" what lies between blank lines, with "file" the whole file.
    A record that is not JSON or UTF-8, has no text, holds a NUL or a lone surrogate, or is longer than MAX_LINE_BYTES
    raises InputError naming file and line, or with on_bad_line="skip" is counted in `skipped` by reason. has_options:
    the command has --text-key and --on-bad-line for these files, so that an error may name them. fields: what else is
    read of each record, into `Document.metadata`; one without it is a bad record.
    """

    def __init__(
        self,
        ranges: Sequence[ByteRange],
        *,
        text_key: str = "text",
        on_bad_line: str = "fail",
        txt_document: str = TXT_DOCUMENTS[0],
        has_options: bool = True,
        fields: Sequence[Field] = (),
    ):
        assert on_bad_line in ("fail", "skip")
        assert txt_document in TXT_DOCUMENTS
        self.ranges, self.text_key, self.on_bad_line, self.txt_document = ranges, text_key, on_bad_line, txt_document
        self.fields, self.has_options, self.see_text_key = fields, has_options, SEE_TEXT_KEY if has_options else ""
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        for span in self.ranges:
            name, kind = span.path.name, kind_of(span.path)
            with open_input(span.path, _last_byte(span)) as raw:
                for record in _records(span, raw, self):
                    try:
                        yield self._document(name, kind, record)
                    except BadRecordError as bad:
                        if self.on_bad_line == "fail":
                            raise InputError(
                                f"{_place(span.path, record)}: {bad}{self._remedy(bad, span.path)}"
                            ) from bad
                        self.skipped[bad.reason] += 1

    def _remedy(self, bad: BadRecordError, path: InputFile) -> str:
        """Return what to type; options only if the command that reads has them."""
        convert = CONVERT if bad.reason == "invalid_utf8" and kind_of(path) != "parquet" else ""
        if not self.has_options:
            return convert
        return f"{convert}{self.see_text_key * (bad.reason == 'no_text')} (--on-bad-line skip counts such lines)"

    def _document(self, name: str, kind: str, record: Record) -> Document:
        value = record.value
        if isinstance(value, BadRecordError):
            raise value
        if isinstance(value, bytes):
            if len(value) > MAX_LINE_BYTES:
                raise BadRecordError("line_too_long", f"a line of more than {MAX_LINE_BYTES} bytes; cut the document")
            try:
                line = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadRecordError("invalid_utf8", f"not valid UTF-8 at byte {error.start} of the line") from error
            if kind == "txt":
                value = {self.text_key: line.rstrip("\r\n")}
            else:
                value = json_object(line, self.text_key if kind == "json" else "")
        return document_of(value, self.text_key, f"{name}:{record.start}", name.split(".")[0], self.fields)


def _records(span: ByteRange, raw: BinaryIO, reader: DocumentReader) -> Iterator[Record]:
    path, kind = span.path, kind_of(span.path)
    if kind == "parquet":
        yield from _parquet_rows(span, raw, reader.text_key, reader.see_text_key, reader.fields)
        return
    try:
        if kind in ("csv", "tsv"):
            yield from table_rows(path, text_stream(path, raw), reader.text_key, reader.see_text_key)
        elif kind == "json" and begins_array(path, raw):
            yield from array_records(path, text_stream(path, raw))
        elif kind == "txt" and reader.txt_document != TXT_DOCUMENTS[0]:
            yield from txt_documents(path, text_stream(path, raw), reader.txt_document)
        else:
            yield from _lines(text_stream(path, raw), span)
    except damages(span.path) as error:
        raise InputError(f"{span.path}: damaged or truncated ({error})") from error


def _lines(stream: BinaryIO, span: ByteRange) -> Iterator[Record]:
    """Yield the lines of `span` that are not blank. A line belongs to the byte range in which its first byte lies."""
    position = span.start
    if position:
        _skip_bytes(stream, position - 1)
        position += skip_line(stream, None if span.end is None else span.end - position + 1) - 1
    while span.end is None or position < span.end:
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        start, position = position, position + len(line)
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            position += skip_line(stream, None)
        if start == 0:
            check_magic(span.path, line)
            line = line.removeprefix(BOM)
        if line and not line.isspace():
            yield Record(start, line)


def _skip_bytes(stream: BinaryIO, count: int) -> None:
    """Go `count` bytes on; a decompressing stream reads its way there."""
    if stream.seekable():
        stream.seek(count)
        return
    while count and (block := stream.read(min(count, READ_BYTES))):
        count -= len(block)


def _place(path: InputFile, record: Record) -> str:
    """Return file and line or row of a record, from 1; lines are counted only when something is wrong with one.

    Of a remote file, which would have to be fetched for that, it is the byte of its text.
    """
    if record.number is not None:
        return f"{path}:{record.number}"
    if not isinstance(path, Path):
        return f"{path}: byte {record.start:,}"
    with open_input(path) as raw:
        stream, number, left = text_stream(path, raw), 1, record.start
        while left and (block := stream.read(min(left, READ_BYTES))):
            number += block.count(b"\n")
            left -= len(block)
    return f"{path}:{number}"


def _parquet_rows(
    span: ByteRange, raw: BinaryIO, text_key: str, advice: str, fields: Sequence[Field] = ()
) -> Iterator[Record]:
    with reading_parquet(span.path):
        file = open_parquet(span.path, raw)
        names = file.schema_arrow.names
        if text_key not in names:
            raise InputError(f"{span.path}: no column {text_key!r} among {', '.join(names)}{advice}")
        if not is_text_type(kind := file.schema_arrow.field(names.index(text_key)).type):
            raise InputError(f"{span.path}: column {text_key!r} holds {kind}, no text{advice}")
        asked = {field.key if field.key in names else field.key.split(".")[0] for field in fields}
        columns = list(dict.fromkeys(name for name in (text_key, "id", "source", *sorted(asked)) if name in names))
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        number = sum(sizes[: span.start])
        groups = list(range(span.start, len(sizes) if span.end is None else span.end))
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups, columns=columns):
            columns_by_name = zip(batch.schema.names, batch.columns, strict=True)
            values = {
                name: column.to_pylist()
                if name in asked and not is_text_type(column.type)
                else plain_values(column, is_text=name == text_key)
                for name, column in columns_by_name
            }
            for row in zip(*values.values(), strict=True):
                number += 1
                yield Record(number - 1, dict(zip(values, row, strict=True)), number)
        if number != sum(sizes[: groups[-1] + 1] if groups else sizes[: span.start]):  # pyarrow says nothing of it
            raise InputError(f"{span.path}: damaged: it holds other rows than it says")
