"""Readers: every format gives the same documents; what cannot be used is named by file and line, or counted."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.errors import InputError
from cmbert.seeding import generator
from data_tools.input.document import Document
from data_tools.input.listing import input_files
from data_tools.input.readers import MAX_LINE_BYTES, ByteRange, DocumentReader, whole_files

RECORDS = [{"id": "a", "source": "s", "text": "一\n二"}, {"id": "b", "source": "s", "text": "三 "}]
DOCUMENTS = [Document(**record) for record in RECORDS]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def test_all_formats_agree(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "1.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"))  # BOM, CRLF, blank lines
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(LINES))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "3.jsonl.zst").write_bytes(compress(LINES[:20]) + compress(LINES[20:]))  # two frames
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "4.parquet")
    (tmp_path / "README.md").write_text("not read")
    reader = DocumentReader(whole_files(input_files([str(tmp_path)])))
    assert list(reader) == DOCUMENTS * 4


def test_a_text_line_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(" 一行\n\n二行\r\n", encoding="utf-8", newline="")
    documents = list(DocumentReader(whole_files(input_files([str(tmp_path / "*.txt")]))))
    assert documents == [Document("novel.txt:0", "novel", " 一行"), Document("novel.txt:9", "novel", "二行")]


def test_files_come_in_a_stable_order_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.name for path in input_files([f"{tmp_path}/b.txt", str(tmp_path), f"{tmp_path}/**/*.txt"])]
    assert names == ["b.txt", "a.txt", "d.txt"]


BAD_RECORDS = [
    (b"{'text': 1}", "not_json", "not JSON"),
    (b"[1]", "not_json", "not a JSON object"),
    (b'{"content": "x"}', "no_text", "no text under 'text'"),
    (b'{"text": null}', "no_text", "no text under 'text'"),
    (b'{"text": "\xff"}', "invalid_utf8", "not valid UTF-8"),
    (rb'{"text": "a\u0000"}', "nul_character", "NUL"),
    (rb'{"text": "\ud83d"}', "lone_surrogate", "surrogate"),
    (rb'{"text": "x", "source": "\ud800"}', "lone_surrogate", "'source' holds half of a surrogate pair"),
    (rb'{"text": "x", "id": "a\udfff"}', "lone_surrogate", "'id' holds half of a surrogate pair"),
    (b'{"text": ' + b"9" * 5_000 + b"}", "no_text", "no text under 'text'"),
    (b'{"text": "x", "n": ' + b"9" * 5_000, "not_json", "not JSON"),
    (b'{"text": "x", "n": ' + b"[" * 100_000 + b"}", "not_json", "not JSON"),
    (b"-" + b"1" * 5_000, "not_json", "not a JSON object"),
]


def beginning(value: object) -> str:
    return str(value)[:40]


@pytest.mark.parametrize(("line", "reason", "message"), BAD_RECORDS, ids=beginning)
def test_bad_records(write_lines: Callable, line: bytes, reason: str, message: str) -> None:
    path = write_lines("corpus.jsonl", [RECORDS[0], line, RECORDS[1]])
    with pytest.raises(InputError, match=rf"corpus\.jsonl:2: .*{message}"):
        list(DocumentReader([ByteRange(path)]))
    reader = DocumentReader([ByteRange(path)], on_bad_line="skip")
    assert list(reader) == DOCUMENTS
    assert reader.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("extra", "name", "source"),
    [
        (b'"n": ' + b"9" * 5_000, "corpus.jsonl:0", "corpus"),
        (b'"n": [{"m": -' + b"9" * 5_000 + b"}]", "corpus.jsonl:0", "corpus"),
        (b'"id": ' + b"7" * 5_000 + b', "source": 5', "7" * 5_000, "corpus"),
        (b'"id": 7, "source": ' + b"9" * 5_000, "7", "corpus"),
        (b'"id": [[1]], "source": {}', "corpus.jsonl:0", "corpus"),
        (b'"id": 1e999, "source": "s"', "inf", "s"),
    ],
    ids=beginning,
)
def test_odd_fields_beside_a_good_text(write_lines: Callable, extra: bytes, name: str, source: str) -> None:
    path = write_lines("corpus.jsonl", [b'{"text": "x", ' + extra + b"}"])
    assert list(DocumentReader([ByteRange(path)])) == [Document(name, source, "x")]


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    """Invalid UTF-8, in whatever way a column is stored, costs a row and not its file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = pyarrow.array([b"a", b"\xff\xfe", None, b"b\0", "好".encode()], pyarrow.binary())
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        texts = raw.cast(pyarrow.string(), safe=False)
        texts = texts.dictionary_encode() if pyarrow.types.is_dictionary(kind) else texts.cast(kind)
        parquet.write_table(pyarrow.table({"text": texts, "id": range(5)}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet:2: 'text' is not valid UTF-8"):
            list(DocumentReader([ByteRange(tmp_path / "a.parquet")]))
        reader = DocumentReader([ByteRange(tmp_path / "a.parquet")], on_bad_line="skip")
        assert list(reader) == [Document("0", "a", "a"), Document("4", "a", "好")]
        assert reader.skipped == {"invalid_utf8": 1, "no_text": 1, "nul_character": 1}
    source = pyarrow.array([b"s", b"\xff"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    times = pyarrow.array([1, 2**50], pyarrow.timestamp("s"))  # of no year that Python knows
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "source": source, "id": times}), tmp_path / "b.parquet")
    reader = DocumentReader([ByteRange(tmp_path / "b.parquet")], on_bad_line="skip")
    assert list(reader) == [Document("b.parquet:0", "s", "x")]
    assert reader.skipped == {"invalid_utf8": 1}


@pytest.mark.parametrize("name", ["none.parquet", "snappy.parquet", "zstd.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    """Flipped bits anywhere: documents, counted records or the file's name, and never another error."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    path, random, said = tmp_path / name, generator(0, "damage"), list[str]()
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS * 20), path, compression=name.split(".")[0])
    else:
        compress = gzip.compress if name.endswith(".gz") else zstandard.ZstdCompressor().compress
        path.write_bytes(compress(LINES * 20))
    sound = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(sound)
        for position in random.integers(len(sound), size=2):
            damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            list(DocumentReader([ByteRange(path)], on_bad_line="skip"))
        except InputError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(message.startswith(f"{path}: ") for message in said)


@pytest.mark.parametrize("name", ["torn.jsonl.gz", "torn.jsonl.zst", "torn.parquet"])
@pytest.mark.parametrize("lost_bytes", [1, 12])
def test_torn_files(tmp_path: Path, name: str, lost_bytes: int) -> None:
    pytest.importorskip("pyarrow")
    zstandard = pytest.importorskip("zstandard")
    compress = zstandard.ZstdCompressor().compress if name.endswith("zst") else gzip.compress
    (tmp_path / name).write_bytes(compress(LINES * 9)[:-lost_bytes])
    with pytest.raises(InputError, match=name):
        list(DocumentReader([ByteRange(tmp_path / name)]))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_an_endless_line_is_not_held_in_memory(tmp_path: Path, suffix: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / f"corpus{suffix}"
    line = b'{"text": "' + b"a" * (4 * MAX_LINE_BYTES) + b'"}\n'
    lines = LINES + line + LINES
    compress = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(compress[suffix](lines))
    del line, lines
    reader = DocumentReader([ByteRange(path)], on_bad_line="skip")
    tracemalloc.start()
    assert list(reader) == DOCUMENTS * 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.skipped == {"line_too_long": 1}
    assert peak < 3.5 * MAX_LINE_BYTES
    with pytest.raises(InputError, match=r":3: a line of more than 64000000 bytes"):
        list(DocumentReader([ByteRange(path)]))


def test_an_empty_parquet_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([None, None], pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet:1: no text"):
        list(DocumentReader([ByteRange(tmp_path / "a.parquet")]))
    reader = DocumentReader([ByteRange(tmp_path / "a.parquet")], on_bad_line="skip")
    assert list(reader) == []
    assert reader.skipped == {"no_text": 2}


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'text' among content"):
        list(DocumentReader([ByteRange(tmp_path / "a.parquet")]))
    assert [d.text for d in DocumentReader([ByteRange(tmp_path / "a.parquet")], text_key="content")] == ["x"]


def test_missing_and_empty_input(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.md").write_text("x")
    for name, message in (("none.jsonl", "no .jsonl"), ("empty.jsonl", "empty"), ("notes.md", "not a .jsonl")):
        with pytest.raises(InputError, match=message):
            input_files([str(tmp_path / name)])
