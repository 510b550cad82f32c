"""metrics.jsonl never shows a step twice, and a line cut by a kill is dropped."""

from pathlib import Path

import pytest

from cmbert.errors import CheckpointError
from cmbert.train.metrics import METRICS_FILE, MetricsWriter, read_metrics


def test_a_resume_rewinds(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    for step in range(5):
        writer.write({"step": step, "loss": float(step)})
    writer.close()
    with open(tmp_path / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    writer = MetricsWriter(tmp_path, 3)
    writer.write({"step": 3, "loss": 33.0})
    writer.close()
    assert [record["loss"] for record in read_metrics(tmp_path)] == [0.0, 1.0, 2.0, 33.0]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text("not json\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="a line is not JSON"):
        read_metrics(tmp_path)
