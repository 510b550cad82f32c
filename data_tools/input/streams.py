"""What is inside an input file: its text as a stream of bytes, decompressed, or its row groups if it is parquet."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from cmbert.config.texts import COMPRESSIONS
from cmbert.errors import ConfigError, InputError, first_line
from data_tools.storage.files import InputFile, open_input, size_of

READ_BYTES = 1 << 17
ZSTD_READ_BYTES = 1 << 10  # at zstd's utmost ratio this becomes 32 MB
ZSTD_HEADER_BYTES = 18  # a frame's longest header
ZSTD_WINDOW_BYTES = 1 << 31  # `zstd --long=31`, its longest; a frame that asks for less, nearly all do, gets less
ZSTD_MAGIC = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # of a frame, and of one to be skipped
MAGICS = (  # how files of other kinds begin; no text does
    (b"\x1f\x8b", "gzip", "rename it .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "rename it .zst"),
    (b"PAR1\x15", "parquet", "rename it .parquet"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\xfd7zXZ\x00", "xz", "unpack it"),
    *((b"BZh%d1AY&SY" % level, "bzip2", "unpack it") for level in range(1, 10)),
    (b"\xff\xfe", "UTF-16", "convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16", "convert it to UTF-8"),
)


class _ZstdStream(io.RawIOBase):
    """Decompress all frames of a zstd file; EOFError when it ends within one (zstandard's own reader says nothing).

    Raises InputError for a frame that asks for a longer window than there is, or for a dictionary.
    """

    def __init__(self, path: InputFile, raw: BinaryIO):
        import zstandard

        self.path, self.raw = path, raw
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
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
            self.ready, self.compressed = memoryview(self._decompress(self.compressed)), b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        if self.frame is not None:
            return self.frame.decompress(data)
        import zstandard

        self.frame = self.decompressor.decompressobj()
        if len(data) < ZSTD_HEADER_BYTES:
            data += self.raw.read(ZSTD_READ_BYTES)
        try:
            return self.frame.decompress(data)
        except zstandard.ZstdError as error:
            if (window := _window_bytes(data)) > ZSTD_WINDOW_BYTES:
                asked = f"asks for a window of {window:,} bytes"
                raise InputError(f"{self.path}: {asked}; compress it again, with --long=31 at most") from error
            if "Dictionary" in str(error):
                asked = f"needs the dictionary {zstandard.get_frame_parameters(data).dict_id}"
                raise InputError(f"{self.path}: {asked}; decompress it with zstd -D, and give it so") from error
            raise


def _window_bytes(frame: bytes) -> int:
    """Return the window that a zstd frame's header asks for (RFC 8878, 3.1.1.1.2); 0 where it says none.

    zstandard's own look at a header stops at the windows that it can do.
    """
    if not ZSTD_MAGIC.match(frame) or len(frame) < 6 or frame[4] & 0x20:  # a single segment says its size instead
        return 0
    exponent, eighths = divmod(frame[5], 8)
    return (1 << (10 + exponent)) // 8 * (8 + eighths)


def kind_of(path: InputFile) -> str:
    """Return what a file of one of the SUFFIXES holds: jsonl, json, csv, tsv, txt or parquet."""
    name = path.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.rsplit(".", 1)[-1]


def is_compressed(path: InputFile) -> bool:
    """Return whether the whole file is."""
    return path.name.endswith(COMPRESSIONS)


def skip_line(stream: BinaryIO, most: int | None) -> int:
    """Read to the end of the line, or `most` bytes, in bounded memory; return the bytes read."""
    skipped = 0
    while most is None or skipped < most:
        part = stream.readline(READ_BYTES if most is None else min(READ_BYTES, most - skipped))
        skipped += len(part)
        if not part or part.endswith(b"\n"):
            break
    return skipped


def check_magic(path: InputFile, head: bytes) -> None:
    """Raise InputError when the text of a file begins as no text does: line by line it would only be nonsense."""
    for magic, kind, remedy in MAGICS:
        if head.startswith(magic):
            raise InputError(f"{path}: {kind}, though its name does not say so; {remedy}")


def text_stream(path: InputFile, raw: BinaryIO) -> BinaryIO:
    """Return the decompressed bytes of a file; it seeks forward by reading where the file is compressed.

    raw: at its beginning. Raises InputError for a file that is not compressed as its name says.
    """
    if path.name.endswith(".gz"):
        _check_compression(path, raw, re.compile(rb"\x1f\x8b"), "gzip")
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ_BYTES)  # type: ignore[arg-type]
    if path.name.endswith(".zst"):
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{path}: needs zstandard; pip install 'cmbert[data]'") from error
        _check_compression(path, raw, ZSTD_MAGIC, "zstd")
        return io.BufferedReader(_ZstdStream(path, raw), READ_BYTES)
    return raw


def _check_compression(path: InputFile, raw: BinaryIO, magic: re.Pattern[bytes], kind: str) -> None:
    head = raw.read(10)
    raw.seek(0)
    if len(head) >= 4 and not magic.match(head):
        check_magic(path, head)
        raise InputError(f"{path}: not {kind}, though its name says so; rename it")


def damages(path: InputFile) -> tuple[type[Exception], ...]:
    """Return what the decompressor of a file raises when the file is damaged."""
    if path.name.endswith(".zst"):
        import zstandard

        return (EOFError, zstandard.ZstdError)
    return (EOFError, gzip.BadGzipFile, zlib.error)


def text_bytes(path: InputFile) -> int:
    """Return how many bytes a file holds once decompressed, by decompressing it. Raises InputError if it is damaged."""
    total = 0
    with open_input(path) as raw:
        stream = text_stream(path, raw)
        try:
            while block := stream.read(READ_BYTES):
                total += len(block)
        except damages(path) as error:
            raise InputError(f"{path}: damaged or truncated ({error})") from error
    return total


@contextmanager
def reading_parquet(path: InputFile) -> Iterator[None]:
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


def open_parquet(path: InputFile, raw: BinaryIO) -> Any:
    """Return pyarrow's ParquetFile. Raises InputError when it is not readable, ConfigError without pyarrow."""
    with reading_parquet(path):
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(raw)


def row_group_bytes(path: InputFile) -> list[int]:
    """Return about how many bytes of the file every row group of a parquet file has. Raises InputError as open_parquet.

    By their sizes before compression: asking a damaged file's column for the other aborts the process (pyarrow 26).
    """
    with open_input(path, until=0) as raw, reading_parquet(path):
        metadata = open_parquet(path, raw).metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        plain = [max(group.total_byte_size, 0) for group in groups]
    size, total = size_of(path), sum(plain)
    return [size * one // total if total else size // len(plain) for one in plain]
