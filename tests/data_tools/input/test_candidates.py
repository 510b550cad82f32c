"""Candidates of a sample: those with the smallest hashes, whoever reads them and however little each may give."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data_tools.input.candidates
import data_tools.input.tasks
from data_tools.input.candidates import CANDIDATES, gather, gather_tasks
from data_tools.input.document import Document, Purpose, text_hash
from data_tools.input.readers import DocumentReader, reading_options, whole_files
from data_tools.input.sample import sample
from data_tools.input.tasks import plan_tasks
from data_tools.runner import Workers
from data_tools.tokenizer.training import read_sample

HOW = reading_options("text", "skip", "line")
SIZE = 20_000


def naive(documents: list[Document], size_bytes: int, purpose: Purpose) -> list[Document]:
    """All in memory: equal texts once, by hash, as many as fit."""
    first = {d.text: d for d in reversed(documents) if d.text.strip() and len(d.text.encode()) <= size_bytes}
    by_hash = sorted(first.values(), key=lambda document: text_hash(document.text, purpose))
    totals = np.cumsum([len(document.text.encode()) for document in by_hash])
    return by_hash[: np.searchsorted(totals, CANDIDATES * size_bytes, side="right")]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several files, many small tasks; equal texts far apart, one file of copies, long and blank ones, bad lines."""
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 3_000)
    random = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        chosen = random.integers(0, 5 if number == 2 else 2_000, 500)
        records = [{"text": f"第{i}篇。" + "好" * (i % 40), "source": f"s{i % 3}"} for i in chosen.tolist()]
        records += [{"text": "长" * 9_000}, {"text": " "}, {"no": 1}]
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{number}.jsonl").write_text(data, encoding="utf-8")
    return folder


@contextmanager
def shuffled(count: int) -> Iterator[Workers]:
    """Workers that answer from behind."""

    class Backwards(Workers):
        def map_unordered(self, function: Callable[[Any], Any], items: Any) -> Iterator[Any]:
            yield from [function(item) for item in items][::-1]

    yield Backwards()


@pytest.mark.parametrize("least", [1, 500, 10**9])
@pytest.mark.parametrize("backwards", [False, True])
def test_tasks_give_what_all_documents_together_do(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, least: int, backwards: bool
) -> None:
    """Also where a task may give too little, so that it is read again, and where nothing is known of the others."""
    monkeypatch.setattr(data_tools.input.candidates, "LEAST_BYTES", least)
    monkeypatch.setattr(data_tools.input.candidates, "SPARE", 2)
    if backwards:
        monkeypatch.setattr(data_tools.input.candidates, "local_workers", shuffled)
    files = sorted(corpus.iterdir())
    tasks = plan_tasks(files)
    assert len(tasks) > 20
    reader = DocumentReader(whole_files(files), **HOW)
    documents = list(reader)
    for size in (SIZE, 300, 10**6):
        whole, parts = gather(documents, size, Purpose.SAMPLE), gather_tasks(tasks, HOW, size, Purpose.SAMPLE)
        expected = naive(documents, size, Purpose.SAMPLE)
        assert [c.document for c in whole.candidates.in_order()] == expected
        assert [c.document for c in parts.candidates.in_order()] == expected
        texts = [document.text for document in documents]
        assert [c.copies for c in parts.candidates.in_order()] == [texts.count(d.text) for d in expected]
        assert (parts.read, parts.left_out, parts.sources) == (whole.read, whole.left_out, whole.sources)
        assert parts.skipped == reader.skipped == {"no_text": 5}


def test_later_tasks_give_only_what_may_still_be_chosen(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What travels in all is little more than what is kept, and no task gives more than its limit."""
    given = []

    class Counting(Workers):
        def map_unordered(self, function: Callable[[Any], Any], items: Any) -> Iterator[Any]:
            for item in items:
                number, found = function(item)
                given.append(found.candidates.num_bytes)
                assert found.candidates.num_bytes <= item.limit
                yield number, found

    @contextmanager
    def counting(count: int) -> Iterator[Workers]:
        yield Counting()

    monkeypatch.setattr(data_tools.input.candidates, "local_workers", counting)
    monkeypatch.setattr(data_tools.input.candidates, "LEAST_BYTES", 3_000)
    tasks, size = plan_tasks(sorted(corpus.iterdir())), 1_000
    gather_tasks(tasks, HOW, size, Purpose.SAMPLE)
    assert sum(given) < 6 * CANDIDATES * size < sum(task.num_bytes for task in tasks) / 8
    assert len(given) == len(tasks)  # none is read twice


def test_any_number_of_workers_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    outputs = []
    for workers in (1, 2, 3):
        outputs.append(tmp_path / f"text{workers}")
        sample(str(corpus), outputs[-1], size_bytes=SIZE, on_bad_line="skip", num_workers=workers)
    for name in ("train.jsonl", "heldout.jsonl", "sample.json"):
        assert len({(output / name).read_bytes() for output in outputs}) == 1
    files = sorted(corpus.iterdir())
    assert read_sample(files, SIZE, HOW, 1) == read_sample(files, SIZE, HOW, 2)
