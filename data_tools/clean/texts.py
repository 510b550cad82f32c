"""The texts of a task: JSON lines in zstd, and a table of what the later passes ask of each."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import zstandard

from cmbert.files.folders import aside_path, remove
from cmbert.files.operations import doing, fsync_path, rename
from data_tools.input.document import Document

TEXT_FILE = "{:05d}.jsonl.zst"  # of a task
TABLE_FILE = "{:05d}.npy"
WORK_LEVEL = 1  # zstd, of texts that are read again and removed: a quarter of the time of OUTPUT_LEVEL
OUTPUT_LEVEL = 6  # zstd: level 10 takes two and a half times as long for 9 % less
ROW = np.dtype([("source", "<u4"), ("held_out", "?"), ("characters", "<u4"), ("bytes", "<u4")])
WRITTEN_BYTES = 1 << 20  # at a time


class TextWriter:
    """Writes JSON lines beside `path`; no file where there are none."""

    def __init__(self, path: Path, level: int):
        self.path, self.level = path, level
        self.aside = aside_path(path)
        self._stream: zstandard.ZstdCompressionWriter | None = None
        self._lines: list[bytes] = []
        self._size = 0

    def write(self, line: bytes) -> None:
        """Write one line, with its end."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= WRITTEN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Compress what has come together."""
        if not self._lines:
            return
        with doing("write", self.path):
            if self._stream is None:
                file = open(self.aside, "wb")  # closed with the stream
                self._stream = zstandard.ZstdCompressor(level=self.level).stream_writer(file)
            self._stream.write(b"".join(self._lines))
        self._lines, self._size = [], 0

    def close(self) -> bool:
        """Write what is left to disk; return whether there is a file."""
        self.flush()
        if self._stream is None:
            return False
        with doing("write", self.path):
            self._stream.close()
        fsync_path(self.aside)
        return True

    def abandon(self) -> None:
        """Close and remove what was written."""
        if self._stream is not None and not self._stream.closed:
            self._stream.close()
        remove(self.aside)


@contextmanager
def writing_texts(path: Path, level: int) -> Iterator[TextWriter]:
    """Give a writer of JSON lines; `path` appears whole when the block ends well, if there were any."""
    writer = TextWriter(path, level)
    try:
        yield writer
        if writer.close():
            rename(writer.aside, path)
        else:
            remove(path)
    finally:
        writer.abandon()


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file of `writing_texts`, none if it wrote none."""
    if not path.exists():
        return
    with doing("read", path), open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        yield from io.BufferedReader(stream, WRITTEN_BYTES)


def line_of(document: Document) -> bytes:
    """Return a document as a line."""
    record = {"id": document.id, "source": document.source, "text": document.text}
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def document_of_line(line: bytes) -> Document:
    """Return the document of a line."""
    return Document(**orjson.loads(line))
