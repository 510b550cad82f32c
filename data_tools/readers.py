"""Files -> documents: JSON lines (plain, gzip, zstd), parquet and text, in a stable order and bounded memory."""

import codecs
import glob
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cmbert.errors import ConfigError, InputError
from data_tools.document import Document

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
PARQUET_BATCH_ROWS = 256  # ours: a few megabytes of long documents


def input_files(paths: Sequence[str]) -> list[Path]:
    """Expand files, folders (searched to any depth) and globs, sorted within each, every file once.

    Raises InputError for a path that leads to no file, a file of another kind, and input that is empty altogether.
    """
    files: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        if not found:
            raise InputError(f"{name}: no {' '.join(SUFFIXES)} file there")
        files |= dict.fromkeys(found)
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise InputError(f"{file}: not a {' '.join(SUFFIXES)} file")
    if not any(file.stat().st_size for file in files):
        raise InputError(f"{', '.join(paths)}: empty")
    return list(files)


class _BadRecordError(Exception):
    """A record without usable text; `reason` is the word it is counted under."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class DocumentReader:
    """Iterate over the documents of `files`.

    JSON lines: one object a line, its text under `text_key`, "id" and "source" optional; blank lines are no records.
    parquet: the same names as columns. txt: each line that is not blank is a document.
    A record that is not JSON or UTF-8, has no text, or holds a NUL or a lone surrogate raises InputError naming file
    and line, or with on_bad_line="skip" is counted in `skipped` by reason.
    """

    def __init__(self, files: Sequence[Path], *, text_key: str = "text", on_bad_line: str = "fail"):
        assert on_bad_line in ("fail", "skip")
        self.files, self.text_key, self.on_bad_line = files, text_key, on_bad_line
        self.skipped: Counter[str] = Counter()
        self.total_bytes = sum(path.stat().st_size for path in files)
        self.bytes_read = 0  # of total_bytes, as the files lie on disk: compressed where they are

    def __iter__(self) -> Iterator[Document]:
        finished = 0
        for path in self.files:
            with open(path, "rb") as raw:
                for number, record in self._records(path, raw):
                    self.bytes_read = finished + raw.tell()
                    try:
                        yield self._document(path, number, record)
                    except _BadRecordError as bad:
                        if self.on_bad_line == "fail":
                            raise InputError(f"{path}:{number}: {bad} (--on-bad-line skip counts such lines)") from bad
                        self.skipped[bad.reason] += 1
            finished += path.stat().st_size
            self.bytes_read = finished

    def _records(self, path: Path, raw: BinaryIO) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
        """Yield (line or row number, from 1; a line's bytes or a row)."""
        if path.name.endswith(".parquet"):
            yield from enumerate(_parquet_rows(path, raw, self.text_key), start=1)
            return
        lines: Iterator[bytes] = iter(raw)
        if path.name.endswith(".gz"):
            lines = _gzip_lines(path, raw)
        elif path.name.endswith(".zst"):
            lines = _zstd_lines(path, raw)
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line and not line.isspace():
                yield number, line

    def _document(self, path: Path, number: int, record: bytes | dict[str, Any]) -> Document:
        if isinstance(record, bytes):
            try:
                line = record.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _BadRecordError("invalid_utf8", f"not valid UTF-8 at byte {error.start} of the line") from error
            record = {self.text_key: line.rstrip("\r\n")} if path.name.endswith(".txt") else _json_object(line)
        text = record.get(self.text_key)
        if not isinstance(text, str):
            raise _BadRecordError("no_text", f"no text under {self.text_key!r} (see --text-key)")
        if "\0" in text:
            raise _BadRecordError("nul_character", "the text holds a NUL character")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _BadRecordError("lone_surrogate", "the text holds half of a surrogate pair, no character") from error
        source, name = record.get("source"), record.get("id")
        return Document(
            id=f"{path.name}:{number}" if name is None else str(name),
            source=source if isinstance(source, str) and source else path.name.split(".")[0],
            text=text,
        )


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _BadRecordError("not_json", f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise _BadRecordError("not_json", "not a JSON object")
    return record


def _gzip_lines(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    try:
        yield from io.BufferedReader(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated gzip ({error})") from error


def _zstd_lines(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"{path}: needs zstandard; pip install 'cmbert[data]'") from error
    try:
        yield from io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: damaged or truncated zstd ({error})") from error


def _parquet_rows(path: Path, raw: BinaryIO, text_key: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: needs pyarrow; pip install 'cmbert[data]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(raw)
        names = file.schema_arrow.names
        if text_key not in names:
            raise InputError(f"{path}: no column {text_key!r} among {', '.join(names)} (see --text-key)")
        columns = [name for name in (text_key, "id", "source") if name in names]
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable parquet file ({reason})") from error
