"""Documents to make shards of, and tasks as small as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

import data_tools.input.tasks
from tests.data_tools.preprocessing.shard_bytes import SENTENCE


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    return write_lines("corpus.jsonl", [{"text": SENTENCE * (i % 7), "source": f"s{i % 2}"} for i in range(80)])


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even the tests' input into several tasks."""
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 2_000)
