"""Hub data sets, by local folders in their place: only the text counts; whatever is raised below becomes one line."""

import errno
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmbert.errors import CmbertError, ConfigError, InputError, TransientError
from data_tools.input.hub import hub_documents
from data_tools.input.sample import sample

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def read(folder: Path, on_bad_line: str = "fail", text_key: str = "text") -> tuple[list[str], Counter[str]]:
    skipped: Counter[str] = Counter()
    return [found.text for found in hub_documents(str(folder), text_key, on_bad_line, skipped)], skipped


def json_lines(folder: Path, *files: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, records in enumerate(files):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"train-{number}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def tables(folder: Path, *columns: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(columns):
        parquet.write_table(pyarrow.table(table), folder / f"train-{number}.parquet")
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [(None, {"a": 1}), ({"a": 1}, {"b": "x"}), ({"a": 1}, None), (1, "x"), ([1], [{"a": 1}]), ("x", [["y"]])],
    ids=str,
)
def test_files_that_differ_in_what_nobody_reads(tmp_path: Path, first: Any, second: Any) -> None:
    """datasets#6162 and #7092."""
    ours = [{"text": "一", "meta": first}], [{"text": "二", "meta": second, "more": 1}, {"text": "三"}]
    assert read(json_lines(tmp_path / "lines", *ours)) == (["一", "二", "三"], {})
    rows = [
        {"text": ["一"], "meta": [first]},
        {"meta": [second], "text": pyarrow.array(["二"], pyarrow.large_string())},
    ]
    assert read(tables(tmp_path / "tables", *rows)) == (["一", "二"], {})


def test_a_file_without_the_text(tmp_path: Path) -> None:
    lines = json_lines(tmp_path / "lines", [{"text": "一"}], [{"content": "二"}], [{"text": 5}])
    columns = tables(tmp_path / "tables", {"text": ["一"]}, {"content": ["二"]}, {"text": [5]})
    for folder in (lines, columns):
        with pytest.raises(InputError, match=rf"hf:{folder}: row 1: no text under 'text' .*--on-bad-line skip"):
            read(folder)
        assert read(folder, "skip") == (["一"], {"no_text": 2})


def test_files_without_rows(tmp_path: Path) -> None:
    nothing = pyarrow.array([], pyarrow.string())
    assert read(tables(tmp_path / "first", {"text": nothing}, {"text": ["一"]}))[0] == ["一"]
    for folder in (tables(tmp_path / "all", {"text": nothing}), json_lines(tmp_path / "empty", []), tmp_path / "cache"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(CmbertError) as caught:
            sample(f"hf:{folder}", tmp_path / "text", size_bytes=1_000)
        assert len(str(caught.value).splitlines()) == 1
        assert str(folder) in str(caught.value)
        assert not (tmp_path / "text").exists()


def test_damaged_files_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = tables(tmp_path / "tables", {"text": ["一"] * 50}, {"text": ["二"] * 50}) / "train-1.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 500)[:-20])
    lines = json_lines(tmp_path / "lines", [{"text": "一"}])
    (lines / "train-1.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    for folder in (whole.parent, packed, lines):
        with pytest.raises(InputError, match=f"hf:{folder}: its files cannot be read") as caught:
            read(folder, "skip")
        assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def stand_in(monkeypatch: pytest.MonkeyPatch, opening: Exception | None, reading: Exception | None) -> None:
    """Put a hub that breaks in the place of `datasets`'."""

    class Stream:
        info = SimpleNamespace(features=None)

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "一"}
            if reading:
                raise reading

    def open_it(name: str) -> Any:
        if opening:
            raise opening
        config, info = SimpleNamespace(), SimpleNamespace(features=None)
        return SimpleNamespace(config=config, info=info, as_streaming_dataset=lambda split: Stream())

    monkeypatch.setattr(datasets, "load_dataset_builder", open_it)


class HttpError(OSError):
    def __init__(self, status: int):
        super().__init__(f"{status} said the server\nfor url x")
        self.response = SimpleNamespace(status_code=status)


ReadError = type("ReadError", (Exception,), {"__module__": "httpx"})
PASSING = [
    ConnectionError("Couldn't reach the Hub"), TimeoutError(), ConnectionResetError(errno.ECONNRESET, "reset"),
    HttpError(503), HttpError(429), ReadError("peer closed connection\nmore"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_broken_network_may_pass(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    for opening, reading in ((error, None), (None, error)):
        stand_in(monkeypatch, opening, reading)
        with pytest.raises(TransientError, match=r"hf:set: .*this may pass: run the same command again") as caught:
            read(Path("set"))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        HttpError(401),
        HttpError(404),
        FileNotFoundError("Dataset 'set' is a gated dataset on the Hub.\nVisit its page"),
        ConnectionError("Couldn't reach 'set' on the Hub (OfflineModeIsEnabled)"),
        KeyError("x"),
        RuntimeError("a\nb"),
    ],
    ids=repr,
)
def test_what_does_not_pass_is_the_users(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    for opening, reading, kind in ((error, None, ConfigError), (None, error, InputError)):
        stand_in(monkeypatch, opening, reading)
        with pytest.raises(kind, match="hf:set: ") as caught:
            read(Path("set"))
        assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, None, OSError(errno.ENOSPC, "No space left on device", "/cache"))
    with pytest.raises(OSError, match="No space left"):
        read(Path("set"))
