"""metrics.jsonl never shows a step twice, and a line cut by a kill is dropped; TensorBoard and W&B get the same."""

import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmbert.config.load import load_recipe
from cmbert.errors import CheckpointError, ConfigError
from cmbert.runs.metrics import (
    EVENTS_FILE,
    METRICS_FILE,
    MetricsWriter,
    append_event,
    check_wandb,
    read_events,
    read_metrics,
    source_names,
)

RECORD = {"step": 7, "loss": 2.5, "source_loss": [2.0, None], "unit_lengths": [1, 2], "straddle_rate": None}


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


def test_events_stay_and_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.record_event("spike", 5, "第五步")
    writer.close()
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"time": 1.0, "ki')
    writer = MetricsWriter(tmp_path, 0)
    writer.record_event("rewind", 0, "back")
    writer.close()
    assert [(event["kind"], event["text"]) for event in read_events(tmp_path)] == [
        ("spike", "第五步"),
        ("rewind", "back"),
    ]


@pytest.mark.parametrize("cut", [1, 2])  # bytes of a Chinese character that a kill has let through
def test_a_line_torn_inside_a_character_is_left_out(tmp_path: Path, cut: int) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 0, "loss": 1.0})
    writer.record_event("life", 0, "第一个")
    writer.close()
    torn = b'{"step": 1, "note": "' + "步".encode()[:cut]
    for name in (METRICS_FILE, EVENTS_FILE):
        with open(tmp_path / name, "ab") as file:
            file.write(torn)
    assert [record["step"] for record in read_metrics(tmp_path)] == [0]
    assert [event["text"] for event in read_events(tmp_path)] == ["第一个"]
    append_event(tmp_path, "life", 0, "第二个")  # as the preflight does
    with open(tmp_path / EVENTS_FILE, "ab") as file:
        file.write(torn)
    writer = MetricsWriter(tmp_path, 1)
    writer.write({"step": 1, "loss": 2.0})
    writer.record_event("life", 1, "第三个")
    writer.close()
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 2.0]
    assert [event["text"] for event in read_events(tmp_path)] == ["第一个", "第二个", "第三个"]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN is not JSON: jq, pandas and JavaScript refuse a file that holds it."""
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 0, "loss": math.nan, "grad_norm": math.inf, "source_loss": [1.5, -math.inf], "tokens": 8})
    writer.close()
    path = tmp_path / METRICS_FILE
    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert written == {"step": 0, "loss": None, "grad_norm": None, "source_loss": [1.5, None], "tokens": 8}
    path.write_text('{"step": 0, "loss": NaN, "source_loss": [Infinity]}\n', encoding="utf-8")  # of an older version
    assert read_metrics(tmp_path) == [{"step": 0, "loss": None, "source_loss": [None]}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]", "found [], must be an object"),
        ('{"loss": 1.0}', "step: missing key"),
        ('{"step": -1}', "step: found -1"),
        ('{"step": true}', "step: found True"),
        ('{"step": 1.5}', "step: found 1.5"),
        ('{"step": 1, "loss": "2"}', "loss: found '2', must be a finite number"),
        ('{"step": 1, "tokens_per_second": NaN}', "tokens_per_second: found None, must be a finite number"),
        ('{"step": 1, "source_tokens": [7, null]}', "source_tokens[1]: found None"),
    ],
)
def test_a_record_of_another_shape_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / METRICS_FILE).write_text(f'{{"step": 0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{METRICS_FILE}: line 2: {re.escape(words)}.*; remove that line"):
        read_metrics(tmp_path)


def test_a_line_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_bytes(b'{"step": 0, "note": "\xff"}\n')
    with pytest.raises(CheckpointError, match=f"{METRICS_FILE}: line 1 is not JSON .*; remove that line"):
        read_metrics(tmp_path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text("not json\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        read_metrics(tmp_path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package `wandb` that remembers what it is told."""
    module: Any = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.Error = type("Error", (Exception,), {})
    module.calls, module.logged, module.finished = [], [], []

    def init(**options: Any) -> Any:
        module.calls.append(options)
        return types.SimpleNamespace(
            log=lambda record, step: module.logged.append((step, record)), finish=lambda: module.finished.append(True)
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_numbers_under_one_id(recipe_file: Path, tmp_path: Path, stand_in: Any) -> None:
    recipe = load_recipe(recipe_file, ["train.wandb_project=zh"])
    for _ in range(2):  # a job and its requeue
        writer = MetricsWriter(tmp_path, 7, recipe)
        writer.write({**RECORD, "source_loss": [2.0]})
        writer.close()
    first, second = stand_in.calls
    assert first == second
    assert first["id"] == (tmp_path / "wandb_id").read_text(encoding="utf-8")
    assert len(first["id"]) == 16
    assert (first["project"], first["resume"], first["dir"]) == ("zh", "allow", tmp_path)
    assert first["config"]["model"]["vocab_size"] == recipe.model.vocab_size
    assert stand_in.logged == [(7, {"loss": 2.5, "source_loss/shards": 2.0})] * 2
    assert len(stand_in.finished) == 2


def test_without_a_project_wandb_is_not_asked(recipe_file: Path, tmp_path: Path, stand_in: Any) -> None:
    MetricsWriter(tmp_path, 0, load_recipe(recipe_file)).close()
    assert not stand_in.calls
    assert not (tmp_path / "wandb_id").exists()
    check_wandb("")


def test_a_refusal_is_one_line(recipe_file: Path, tmp_path: Path, stand_in: Any) -> None:
    def refuse(**options: Any) -> None:
        raise stand_in.Error("no API key")

    stand_in.init = refuse
    with pytest.raises(ConfigError, match="W&B refuses \\(no API key\\); log in with `wandb login`"):
        MetricsWriter(tmp_path, 0, load_recipe(recipe_file, ["train.wandb_project=zh"]))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmbert.runs.metrics.is_installed", lambda name: False)
    with pytest.raises(ConfigError, match=r"'zh' needs wandb, not installed: pip install 'cmbert\[wandb\]'"):
        check_wandb("zh")
    check_wandb("")


def test_tensorboard_gets_the_loss_of_each_source(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.sources = ["news", "web"]
    writer.write(RECORD)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "loss": 2.5, "source_loss/news": 2.0,
    }  # fmt: skip
    assert read_metrics(tmp_path) == [RECORD]


def test_sources_of_one_name_keep_their_paths() -> None:
    assert source_names(["a/news", "b/web"]) == ["news", "web"]
    assert source_names(["a/train", "b/train"]) == ["a/train", "b/train"]


def test_fields_of_earlier_runs_have_their_names_of_today(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "rows_left_out": 4}\n', encoding="utf-8")
    assert read_metrics(tmp_path, needed=["skipped_rows"]) == [{"step": 0, "skipped_rows": 4}]
