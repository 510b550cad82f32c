"""Readers: every format gives the same documents; what cannot be used is named by file and line, or counted."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.errors import InputError
from data_tools.document import Document
from data_tools.readers import DocumentReader, input_files

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
    reader = DocumentReader(input_files([str(tmp_path)]))
    assert list(reader) == DOCUMENTS * 4
    assert reader.bytes_read == reader.total_bytes


def test_a_text_line_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(" 一行\n\n二行\r\n", encoding="utf-8", newline="")
    documents = list(DocumentReader(input_files([str(tmp_path / "*.txt")])))
    assert documents == [Document("novel.txt:1", "novel", " 一行"), Document("novel.txt:3", "novel", "二行")]


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
]


@pytest.mark.parametrize(("line", "reason", "message"), BAD_RECORDS)
def test_bad_records(write_lines: Callable, line: bytes, reason: str, message: str) -> None:
    path = write_lines("corpus.jsonl", [RECORDS[0], line, RECORDS[1]])
    with pytest.raises(InputError, match=rf"corpus\.jsonl:2: .*{message}"):
        list(DocumentReader([path]))
    reader = DocumentReader([path], on_bad_line="skip")
    assert list(reader) == DOCUMENTS
    assert reader.skipped == {reason: 1}


@pytest.mark.parametrize("name", ["torn.jsonl.gz", "torn.parquet"])
def test_torn_files(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(gzip.compress(LINES)[:-12])
    with pytest.raises(InputError, match=name):
        list(DocumentReader([tmp_path / name]))


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'text' among content"):
        list(DocumentReader([tmp_path / "a.parquet"]))
    assert [d.text for d in DocumentReader([tmp_path / "a.parquet"], text_key="content")] == ["x"]


def test_missing_and_empty_input(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.md").write_text("x")
    for name, message in (("none.jsonl", "no .jsonl"), ("empty.jsonl", "empty"), ("notes.md", "not a .jsonl")):
        with pytest.raises(InputError, match=message):
            input_files([str(tmp_path / name)])
