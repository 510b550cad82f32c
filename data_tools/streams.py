"""What is inside an input file: its text as a stream of bytes, decompressed, or its row groups if it is parquet."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cmbert.errors import ConfigError, InputError, first_line

READ_BYTES = 1 << 17
ZSTD_READ_BYTES = 1 << 10  # at zstd's utmost ratio this becomes 32 MB


class _ZstdStream(io.RawIOBase):
    """Decompress all frames of a zstd file; EOFError when it ends within one (zstandard's own reader says nothing)."""

    def __init__(self, raw: BinaryIO, decompressor: Any):
        self.raw, self.decompressor = raw, decompressor
        self.frame: Any = None
        self.compressed = b""
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what one block gives, as io.BufferedReader wants it; 0 at the end."""
        while not self.ready:
            self.compressed = self.compressed or self.raw.read(ZSTD_READ_BYTES)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self.frame = self.frame or self.decompressor.decompressobj()
            self.ready, self.compressed = memoryview(self.frame.decompress(self.compressed)), b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def text_stream(path: Path, raw: BinaryIO) -> BinaryIO:
    """Return the decompressed bytes of a file; it seeks forward by reading where the file is compressed."""
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ_BYTES)  # type: ignore[arg-type]
    if path.name.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise ConfigError(f"{path}: needs zstandard; pip install 'cmbert[data]'") from error
        return io.BufferedReader(_ZstdStream(raw, zstandard.ZstdDecompressor()), READ_BYTES)
    return raw


def damages(path: Path) -> tuple[type[Exception], ...]:
    """Return what the decompressor of a file raises when the file is damaged."""
    if path.name.endswith(".zst"):
        import zstandard

        return (EOFError, zstandard.ZstdError)
    return (EOFError, gzip.BadGzipFile, zlib.error)


def text_bytes(path: Path) -> int:
    """Return how many bytes a file holds once decompressed, by decompressing it. Raises InputError if it is damaged."""
    total = 0
    with open(path, "rb") as raw:
        stream = text_stream(path, raw)
        try:
            while block := stream.read(READ_BYTES):
                total += len(block)
        except damages(path) as error:
            raise InputError(f"{path}: damaged or truncated ({error})") from error
    return total


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Raise InputError, naming the file, for what pyarrow raises when it is damaged, ConfigError without pyarrow."""
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(f"{path}: needs pyarrow; pip install 'cmbert[data]'") from error
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
            raise
        raise InputError(f"{path}: not a readable parquet file, damaged or truncated ({first_line(error)})") from error


def open_parquet(path: Path, raw: BinaryIO) -> Any:
    """Return pyarrow's ParquetFile. Raises InputError when it is not readable, ConfigError without pyarrow."""
    with reading_parquet(path):
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(raw)


def row_group_bytes(path: Path) -> list[int]:
    """Return the size on disk of every row group of a parquet file. Raises InputError when it is not readable."""
    with open(path, "rb") as raw, reading_parquet(path):
        metadata = open_parquet(path, raw).metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        return [sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups]
