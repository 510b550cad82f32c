"""Text and JSON from outside: what ends a line, what is no character, and what is said of it."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

import cmbert.files.reading
from cmbert.errors import InputError
from cmbert.files.reading import json_lines, lines_of, parse_json, read_json

INSIDE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r甲"  # str.splitlines would cut at each


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "file.jsonl"
    path.write_bytes(data)
    return path


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    path = file_of(tmp_path, f"\ufeff一{INSIDE}二\r\n\n \n三".encode())
    assert list(lines_of(path)) == [(1, f"一{INSIDE}二"), (4, "三")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"\n \n", "only blank lines"),
        (
            b"ok\n\xe4\xbd\n",
            ":2: not UTF-8 at byte 0 of the line; convert the file to UTF-8: iconv -f GB18030 -t UTF-8",
        ),
        ("好\n".encode("gb18030"), ":1: not UTF-8 at byte 0"),
        ("好\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("a\n".encode("utf-16-le"), ":1: holds a NUL character"),
        (b"12345678\n123456789\n", ":2: a line of more than 9 bytes"),
    ],
)
def test_what_is_no_text_is_said_with_its_line(
    data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmbert.files.reading, "MAX_LINE_BYTES", 9)
    with pytest.raises(InputError) as caught:
        list(lines_of(file_of(tmp_path, data)))
    assert said in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        next(lines_of(tmp_path / "x"))
    with pytest.raises(InputError, match="a folder; name a file in it"):
        next(lines_of(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r'{"a": "好笑\ud83d"}', "half of a surrogate pair"),
        (r'{"a": "\uDE00好笑"}', "half of a surrogate pair"),
        (r'{"\ud83d": 1}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1', "line 1 column"),
        ("", "line 1 column"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_is_no_json_is_said_in_one_line(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text)
    assert len(str(caught.value).splitlines()) == 1


def test_odd_json_is_read() -> None:
    assert parse_json(r'"\ud83d\ude00"') == "😀"
    assert parse_json(r'"\\ud83d"') == r"\ud83d"  # a backslash and letters
    assert parse_json("9" * 5000) == Decimal("9" * 5000)
    assert parse_json('{"a": "b\tc\x0b"}') == {"a": "b\tc\x0b"}


def test_a_record_is_a_line_whatever_its_text_holds(tmp_path: Path) -> None:
    records = [{"text": f"一{INSIDE}二"}, {"text": "三"}]
    data = "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records)
    assert [value for _, value in json_lines(file_of(tmp_path, data.encode()))] == records


@pytest.mark.parametrize("line", ["[1]", "null", "1", '"text"'])
def test_a_line_that_holds_no_object(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file\.jsonl:2: not a JSON object but"):
        list(json_lines(file_of(tmp_path, f'{{"a": 1}}\n{line}\n'.encode())))


def test_a_file_of_json(tmp_path: Path) -> None:
    assert read_json(file_of(tmp_path, b"\xef\xbb\xbf[1]")) == [1]
    with pytest.raises(InputError, match=r"file\.jsonl: not JSON"):
        read_json(file_of(tmp_path, b"[1"))
