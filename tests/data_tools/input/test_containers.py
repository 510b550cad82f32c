"""What text comes packed in: every legal way to pack it is read; what is not is said in one line."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.errors import InputError
from data_tools.input.document import Document
from data_tools.input.readers import ByteRange, DocumentReader
from data_tools.input.streams import row_group_bytes

zstandard = pytest.importorskip("zstandard")

LINES = '{"text": "一"}\n{"text": "二"}\n'.encode()
GZIPPED = gzip.compress(LINES, mtime=0)  # no clock: it is in the names of tests, and two workers must agree on these
SKIPPABLE = struct.pack("<II", 0x184D2A5E, 5) + b"table"  # the seekable format's table is such a frame, and pzstd's


def texts(path: Path, data: bytes | None = None, **options: str) -> list[str]:
    if data is not None:
        path.write_bytes(data)
    return [document.text for document in DocumentReader([ByteRange(path)], **options)]


def zstd(data: bytes, window_log: int = 0) -> bytes:
    """Compress as a stream, whose frame says its window and not its size."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=bool(window_log))
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_zstd_of_long_windows(tmp_path: Path, window_log: int) -> None:
    """`zstd --long=28` and up to 31; a reader of usual settings stops at 27."""
    packed = zstd(LINES, window_log)
    assert zstandard.get_frame_parameters(packed).window_size == 1 << window_log
    assert texts(tmp_path / "a.jsonl.zst", packed) == ["一", "二"]


def test_a_window_that_is_too_long_is_named(tmp_path: Path) -> None:
    packed = bytearray(zstd(LINES))
    assert packed[4] & 0x20 == 0  # the next byte is the window's
    packed[5] = 22 << 3  # 2 ** (10 + 22)
    path = tmp_path / "a.jsonl.zst"
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: .*window of 4,294,967,296 bytes.*--long=31") as caught:
        texts(path, bytes(packed), on_bad_line="skip")
    assert "truncated" not in str(caught.value)
    path.write_bytes(SKIPPABLE + LINES[:0] + zstd(LINES) * 80 + bytes(packed))  # the frame begins anywhere in a block
    with pytest.raises(InputError, match="window of 4,294,967,296 bytes"):
        texts(path)


def test_a_dictionary_is_named(tmp_path: Path) -> None:
    samples = [os.urandom(20) * 5 + b'{"text": "%d"}' % number for number in range(500)]
    dictionary = zstandard.train_dictionary(2_000, samples)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(LINES)
    with pytest.raises(InputError, match=rf"needs the dictionary {dictionary.dict_id()}; decompress it with zstd -D"):
        texts(tmp_path / "a.jsonl.zst", packed)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl.zst", lambda: zstd(LINES[:20]) + zstd(LINES[20:])),
        ("a.jsonl.zst", lambda: SKIPPABLE + zstd(b"") + zstd(LINES[:20]) + SKIPPABLE * 300 + zstd(LINES[20:])),
        ("a.jsonl.zst", lambda: zstd(LINES[:20]) + zstd(LINES[20:]) + SKIPPABLE),
        ("a.jsonl.gz", lambda: gzip.compress(LINES[:20]) + gzip.compress(b"") + gzip.compress(LINES[20:])),
        ("a.jsonl.gz", lambda: gzip.compress(LINES) + b"\0" * 3_000),  # as tapes and block devices fill up
    ],
)
def test_frames_and_members(tmp_path: Path, name: str, pack: Callable[[], bytes]) -> None:
    assert texts(tmp_path / name, pack()) == ["一", "二"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl.gz", LINES, "not gzip, though its name says so; rename it"),
        ("a.jsonl.zst", LINES, "not zstd, though its name says so; rename it"),
        ("a.jsonl.zst", GZIPPED, "gzip, though its name does not say so; rename it .gz"),
        ("a.jsonl", GZIPPED, "gzip, though its name does not say so; rename it .gz"),
        ("a.txt", zstd(LINES), "zstd, though its name does not say so; rename it .zst"),
        ("a.jsonl", b"PAR1\x15\x04", "parquet, though its name does not say so; rename it .parquet"),
        ("a.jsonl.gz", gzip.compress(GZIPPED, mtime=0), "gzip, though"),
        ("a.jsonl", b"PK\x03\x04" + LINES, "a zip archive.*; unpack it"),
        ("a.jsonl", b"BZh91AY&SY" + LINES, "bzip2.*; unpack it"),
        ("a.jsonl", b"\xfd7zXZ\x00" + LINES, "xz.*; unpack it"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16.*; convert it to UTF-8"),
        ("a.txt", "\ufeff好".encode("utf-16-be"), "UTF-16.*; convert it to UTF-8"),
    ],
)
def test_a_name_that_is_not_what_is_inside(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    """With "skip", too: line by line such a file would go without a word."""
    for choice in ("fail", "skip"):
        with pytest.raises(InputError, match=rf"{name}: {said}"):
            texts(tmp_path / name, data, on_bad_line=choice)


def test_an_array_of_records_is_no_lines(tmp_path: Path) -> None:
    for data in (b'[{"text": "x"}]', b'[\n{"text": "x"},\n{"text": "y"}\n]', b'[{"text": "x"},\n{"text": "y"}]'):
        with pytest.raises(InputError, match=r"a\.jsonl:1: .*; one object a line"):
            texts(tmp_path / "a.jsonl", data)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_parquet_of_every_compression(tmp_path: Path, compression: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["一", "二"]}), tmp_path / "a.parquet", compression=compression)
    assert texts(tmp_path / "a.parquet") == ["一", "二"]


def test_columns_of_text_and_of_something_else(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, strings = tmp_path / "a.parquet", ["一", "二"]
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()]
    kinds += [pyarrow.binary(), pyarrow.large_binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    for kind in kinds:  # binary: what Spark and Impala write for strings
        array = pyarrow.array([text.encode() for text in strings] if "binary" in str(kind) else strings)
        parquet.write_table(pyarrow.table({"text": array.cast(kind), "id": [b"\xff", b"\xfe"]}), path)
        assert list(DocumentReader([ByteRange(path)])) == [
            Document(f"a.parquet:{row}", "a", text) for row, text in enumerate(strings)
        ], kind
    for values in ([["一"], ["二"]], [{"zh": "一"}, {"zh": "二"}], [1, 2], [0.5, 1.5]):
        parquet.write_table(pyarrow.table({"text": values}), path)
        for choice in ("fail", "skip"):
            with pytest.raises(InputError, match=r"a\.parquet: column 'text' holds (list|struct|int64|double)"):
                texts(path, on_bad_line=choice)
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert texts(path) == []
    parquet.write_table(pyarrow.table({"text": pyarrow.nulls(2)}), path)
    assert texts(path, on_bad_line="skip") == []


def test_a_parquet_file_on_which_pyarrow_aborts(tmp_path: Path) -> None:
    """Found by fuzzing: a footer whose histograms contradict the schema, and a column asked for its compressed size."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["一", "二"] * 20}), path, row_group_size=10, use_dictionary=False)
    sizes = row_group_bytes(path)
    assert len(sizes) == 4
    assert sum(sizes) == pytest.approx(path.stat().st_size, abs=4)
    sound = path.read_bytes()
    damaged = sound.replace(b"\x19\x06\x19\x26\x00\x14", b"\x19\x26\x00\x14\x19\x06")  # two lists change places
    assert damaged != sound
    path.write_bytes(damaged)
    assert len(row_group_bytes(path)) == 4
    with pytest.raises(InputError, match=r"a\.parquet: not a readable parquet file"):
        texts(path)
