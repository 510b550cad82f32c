"""Tasks: however the input is cut, every document is read once, in order, and errors name the right line."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_tools.input.tasks
from cmbert.errors import InputError
from data_tools.input.readers import ByteRange, DocumentReader, whole_files
from data_tools.input.streams import kind_of
from data_tools.input.tasks import InputTask, plan_tasks
from data_tools.outputs import describe_inputs

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".txt.gz", ".csv", ".tsv.zst", ".json", ".json.gz")


def write(path: Path, texts: list[str]) -> Path:
    """Write texts in the format that the file's name says."""
    if path.name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
        return path
    if kind_of(path) == "json":
        raw = json.dumps(texts, ensure_ascii=False).encode()
    elif kind_of(path) in ("txt", "csv", "tsv"):
        raw = "".join(text + "\n" for text in (["text"] * (kind_of(path) != "txt") + texts)).encode()
    else:
        raw = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    if path.name.endswith(".gz"):
        raw = gzip.compress(raw)
    if path.name.endswith(".zst"):
        raw = pytest.importorskip("zstandard").ZstdCompressor().compress(raw)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("task_bytes", [1, 60, 500, 10**6])
def test_every_document_once_in_order(
    tmp_path: Path, suffix: str, task_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", task_bytes)
    monkeypatch.setattr(data_tools.input.tasks, "MOST_TASKS", 10**9)
    characters = np.random.default_rng(0).integers(0x4E00, 0x9FA6, (80, 200))  # hard to compress
    texts = ["".join(map(chr, line[: i % 9 * 20 + 1])) for i, line in enumerate(characters)]
    files = [write(tmp_path / f"{n}{suffix}", texts[:n]) for n in (80, 1, 3)]
    tasks = plan_tasks(files)
    found = [document for task in tasks for document in DocumentReader(task.ranges)]
    assert found == list(DocumentReader(whole_files(files)))
    assert len(found) == 84
    if task_bytes == 10**6:
        assert len(tasks) == 1
    elif kind_of(files[0]) in ("csv", "tsv", "json"):
        spans = [span for task in tasks for span in task.ranges]
        assert spans == whole_files(files), "a line break in quotes looks like one between rows"
    elif suffix in (".jsonl", ".txt") and task_bytes < 500:
        assert len(tasks) > 80
    else:
        assert len(tasks) > 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("今a \r\t", max_size=9), max_size=12),
    st.lists(st.integers(0, 200), max_size=4),
    st.booleans(),
)
def test_cuts_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], cuts: list[int], end: bool
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "corpus.txt"
    path.write_bytes(("\n".join(lines) + "\n" * end).encode())
    bounds = [0, *sorted(set(cuts) - {0}), None]
    ranges = [ByteRange(path, start or 0, stop) for start, stop in pairwise(bounds)]
    assert list(DocumentReader(ranges)) == list(DocumentReader([ByteRange(path)]))


def test_many_small_files_share_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{i:03d}.txt", [f"第{i}篇"]) for i in range(100)]
    assert [len(task.ranges) for task in plan_tasks(files)] == [100]
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 30)
    assert {len(task.ranges) for task in plan_tasks(files)} <= {2, 3, 4}


def test_with_many_files_compressed_ones_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 10)
    files = [
        write(tmp_path / f"{i:03d}.jsonl.gz", ["今天天气很好"] * 9) for i in range(data_tools.input.tasks.FEW_FILES + 1)
    ]
    assert len(plan_tasks(files[:-1])) > len(files)
    assert [task.ranges for task in plan_tasks(files)] == [(ByteRange(path, 0, None),) for path in files]


def test_an_error_names_the_line_in_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", ["今天"] * 50)
    with path.open("a") as file:
        file.write("broken\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl:51: not JSON"):
        list(DocumentReader([ByteRange(path, 300, None)]))


def test_identity_follows_range_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", ["今天"] * 50)
    task = InputTask((ByteRange(path),), 1)
    before = task.identity({"inputs": describe_inputs([path])})
    assert before == task.identity({"inputs": describe_inputs([path])})
    assert before != task.identity({"inputs": []})
    assert before != InputTask((ByteRange(path, 0, 9),), 1).identity({"inputs": describe_inputs([path])})
    path.write_bytes(path.read_bytes().replace("今".encode(), "明".encode()))
    assert before != task.identity({"inputs": describe_inputs([path])})


def test_a_line_longer_than_its_task_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "corpus.txt", ["一", "长" * 100_000, "二"])
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 1_000)
    tasks = plan_tasks([path])
    assert len(tasks) > 100
    read = []
    monkeypatch.setattr("data_tools.input.readers.text_stream", lambda _, raw: Counting(raw, read))
    found = [document.text for task in tasks for document in DocumentReader(task.ranges)]
    assert [len(text) for text in found] == [1, 100_000, 1]
    assert sum(read) < 3 * path.stat().st_size  # and not once for every task that begins inside it


class Counting:
    """A file that notes how much is read from it."""

    def __init__(self, raw: BinaryIO, read: list[int]):
        self.raw, self.read_bytes = raw, read
        self.seek, self.seekable, self.tell = raw.seek, raw.seekable, raw.tell

    def readline(self, most: int) -> bytes:
        line = self.raw.readline(most)
        self.read_bytes.append(len(line))
        return line
