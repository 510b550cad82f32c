"""csv, tsv, json and txt of more than lines: the same documents as JSON lines give, and every mistake in one line."""

import csv
import gzip
import io
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from cmbert.errors import InputError
from data_tools.input import arrays, tables
from data_tools.input.announcement import describe_txt
from data_tools.input.document import Document
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files

TEXTS = ["一,二\n三", '他说"好"。', "\t制表，\r\n换行", " 平常 "]
RECORDS = [{"id": f"{number}", "source": "s", "text": text} for number, text in enumerate(TEXTS)]
DOCUMENTS = [Document(**record) for record in RECORDS]
BOM = b"\xef\xbb\xbf"


def table(delimiter: str, header: bool = True) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["id", "source", "text"], delimiter=delimiter)
    if header:
        writer.writeheader()
    writer.writerows(RECORDS)
    return buffer.getvalue().encode()


FILES = {
    "a.csv": table(","),
    "b.tsv": BOM + table("\t"),
    "c.csv.gz": gzip.compress(table(",").replace(b"\r\n", b"\n\n")),  # blank rows are none
    "d.json": json.dumps(RECORDS, ensure_ascii=False).encode(),
    "e.json.gz": gzip.compress(BOM + json.dumps(RECORDS, indent=2).encode() + b"\n \n"),
    "f.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
}


def read(path: Path, **how: str) -> list[Document]:
    return list(DocumentReader(whole_files([path]), **how))


@pytest.mark.parametrize("name", FILES)
def test_the_same_documents(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "READ_BYTES", 7)  # strings, characters and escapes are cut
    (tmp_path / name).write_bytes(FILES[name])
    if name.startswith("c"):  # "\r\n" in a text has become two line ends there
        assert [document.id for document in read(tmp_path / name)] == ["0", "1", "2", "3"]
        return
    assert read(tmp_path / name) == DOCUMENTS
    assert input_files([str(tmp_path)]) == [tmp_path / name], "found in its folder"


def test_texts_alone_in_an_array(tmp_path: Path) -> None:
    path = tmp_path / "poems.json"
    for text in (json.dumps(TEXTS), "\n" + json.dumps(TEXTS, ensure_ascii=False, indent=1)):
        path.write_text(text, encoding="utf-8")
        assert read(path) == [Document(f"poems.json:{number}", "poems", text) for number, text in enumerate(TEXTS)]
    path.write_text(" [ ] \n")
    assert read(path) == []
    path.write_text('{"text": "一"}\n{"text": "二"}\n', encoding="utf-8")
    assert [document.text for document in read(path)] == ["一", "二"], "JSON lines under another name"


def test_json_beside_texts_that_is_no_array_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"settings": {}}')
    (tmp_path / "00000.jsonl").write_text('{"text": "x"}')
    assert [path.name for path in input_files([str(tmp_path)])] == ["00000.jsonl"]
    assert [path.name for path in input_files([str(tmp_path / "report.json")])] == ["report.json"]


MISTAKES = {
    "no header.csv": ("今天天气很好,1\n不好,0\n", r"no column 'text' in its first line.*'今天天气很好', '1' \(see"),
    "other.csv": ("label,review\n1,好\n", r"'label', 'review' \(see --text-key\)"),
    "twice.csv": ("text,text\n1,好\n", "two columns 'text'"),
    "commas.csv": ("text\n好\n今天,很好\n", r"commas.csv:3: 2 fields, the header has 1; .* \(--on-bad-line skip"),
    "quote.tsv": ('text\n"你好"，他说。\n', r"quote.tsv:2: not a row of tsv \(.*\); a field that holds"),
    "open.csv": ('text\n好\n"一\n二\n', "open.csv:3: not a row of csv .unexpected end of data"),
    "gbk.csv": ("文本,text\n".encode("gbk"), "not UTF-8; if it is GBK: iconv -f GB18030"),
    "bytes.csv": (b"text\n\xff\n", "bytes.csv:2: 'text' is not valid UTF-8 at its byte 0; if .* GBK: iconv"),
    "gbk.txt": ("\n好\n".encode("gbk"), "gbk.txt:2: not valid UTF-8 at byte 0 of the line; if .* GBK: iconv"),
    "nul.csv": ("text\na\0b\n", "nul.csv:2: the text holds a NUL"),
    "wide.csv": ("\ufefftext\n".encode("utf-16"), "UTF-16"),
    "open.json": ('["一", "二"', "damaged or truncated .its array does not end; 1 elements do"),
    "more.json": ('["一"] ["二"]', "something follows the end of its array"),
    "number.json": ('["一", 5]', r"number.json:2: not a JSON object.*skip"),
    "comma.json": ('["一", ]', "comma.json:2: not JSON"),
    "key.json": ('[{"content": "一"}]', r"key.json:1: no text under 'text' \(see --text-key\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path: Path, name: str) -> None:
    written, message = MISTAKES[name]
    (tmp_path / name).write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).isprintable()


def test_an_error_names_only_options_that_there_are(tmp_path: Path) -> None:
    for name in ("other.csv", "commas.csv", "number.json", "key.json"):
        (tmp_path / name).write_text(str(MISTAKES[name][0]), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            list(DocumentReader(whole_files([tmp_path / name]), has_options=False))
        assert "--" not in str(caught.value)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    bad = b"text,label\n" + '好,1\n一,二,三\n,\n"a"b,1\n'.encode() + b"\xff,1\n" + "尾,0\n".encode()
    (tmp_path / "a.csv").write_bytes(bad)
    (tmp_path / "a.json").write_bytes('["好", 5, {"text": "尾"}, nul, "\\ud83d"]'.encode())
    for name, counts in (
        ("a.csv", {"bad_row": 2, "invalid_utf8": 1}),
        ("a.json", {"not_json": 2, "lone_surrogate": 1}),
    ):
        reader = DocumentReader(whole_files([tmp_path / name]), on_bad_line="skip")
        assert [document.text for document in reader if document.text] == ["好", "尾"]
        assert reader.skipped == Counter(counts)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_what_is_too_long_is_never_held(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tables, arrays):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 300_000)
    long = b"x" * 30_000_000
    parts = (b"text\nfirst\n", long, b"\nlast\n") if name == "a.csv" else (b'["first", "', long, b'", "last"]')
    (tmp_path / name).write_bytes(b"".join(parts))
    del parts, long
    tracemalloc.start()
    reader = DocumentReader(whole_files([tmp_path / name]), on_bad_line="skip")
    assert [document.text for document in reader] == ["first", "last"]
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert reader.skipped == Counter(line_too_long=1)


TXT = "\ufeff第一章\n开头。\n\n \n第二章\n完。\n\n"


def test_documents_of_txt(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(TXT, encoding="utf-8")
    assert [document.text for document in read(path)] == ["第一章", "开头。", "第二章", "完。"]
    blocks = read(path, txt_document="block")
    assert [document.text for document in blocks] == ["第一章\n开头。", "第二章\n完。"]
    assert blocks[1].id == f"novel.txt:{TXT.encode().index('第二章'.encode())}"
    assert [document.text for document in read(path, txt_document="file")] == ["第一章\n开头。\n\n \n第二章\n完。"]
    (tmp_path / "empty.txt").write_text("\n \n")
    for document in ("block", "file"):
        assert read(tmp_path / "empty.txt", txt_document=document) == []


def test_how_txt_is_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(TXT, encoding="utf-8")
    assert "1 .txt files: a document is a line; the first 4 have 3 characters in the median" in describe_txt([path])
    assert "between documents --txt-document block, between paragraphs file" in describe_txt([path])
    assert describe_txt([path], "block").endswith("the first 2 have 6 characters in the median")
    assert describe_txt([tmp_path / "a.jsonl"]) == ""
