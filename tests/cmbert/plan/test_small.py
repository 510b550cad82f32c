"""The plan of a small run: which form it gets, what is measured, and what that says of the whole stage."""

import json
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.model.loss import CPU_CHUNK_BYTES
from cmbert.plan import machine as machine_module
from cmbert.plan import measure as measure_module
from cmbert.plan.machine import MEASURED_STEPS, Machine, Measured, look_at_machine, processes_here
from cmbert.plan.measure import UNCOUNTED_STEPS, _extrapolate, measure
from cmbert.plan.memory import CPU_LOSS_CHUNK_BYTES
from tests import forking

LARGE = Path(__file__).parents[3] / "recipes" / "large" / "stage1.toml"
CPU = Machine(num_gpus=0, num_cores=2, memory_bytes=8_000_000_000, name="")
LONG_TITLES = ("Failures on", "GPU-hours", "Memory per GPU", "H100")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine have two cores and no GPU."""
    monkeypatch.setattr(machine_module, "look_at_machine", lambda: CPU)


@pytest.fixture
def trained_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let trainings start at once, and temporary folders lie in the one that is returned."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(measure_module, "subprocess", SimpleNamespace(run=run_forked, TimeoutExpired=Exception))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


def run_forked(command: list[str], **options: Any) -> Any:
    """Run a command as `measure` does, forked."""
    return forking.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("words", "is_short"),
    [
        ([], True),
        (["--gpus", "2"], True),  # of under an hour of one GPU
        (["--gpus", "2", "--long"], False),
        (["--gpus", "2", "--mfu", "0.4"], False),
    ],
)
@pytest.mark.usefixtures("on_cpu")
def test_the_form_of_a_small_stage(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], is_short: bool
) -> None:
    assert main(["plan", str(recipe_file), *words]) == 0
    said = capsys.readouterr().out
    assert [title in said for title in LONG_TITLES] == [not is_short] * len(LONG_TITLES)
    assert ("--measure" in said, "--long" in said) == (is_short, is_short)
    if is_short:
        assert len(said.splitlines()) <= 24
        assert re.search(r"^Memory +\d+ MB a process \(estimated", said, re.MULTILINE)


@pytest.mark.usefixtures("on_cpu")
def test_a_large_stage_is_planned_for_gpus_where_gpus_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(LARGE), "--gpus", "56"]) == 0
    assert all(title in capsys.readouterr().out for title in ("Failures on 7 nodes",))
    assert main(["plan", str(LARGE)]) == 0
    said = capsys.readouterr().out
    assert not any(title in said for title in LONG_TITLES)
    assert "too little; lower train.micro_batch_rows" in " ".join(said.split())


def test_a_machine_without_gpus_is_known_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_module, "DEVICES", tmp_path)
    found = look_at_machine()
    assert (found.num_gpus, found.name) == (0, "")
    assert found.most_processes == found.num_cores > 0
    assert found.memory_bytes > 0


def test_a_machines_gpus_are_used_as_far_as_a_step_divides(recipe_file: Path) -> None:
    train = load_recipe(recipe_file).train  # 8 rows a step
    for num_gpus, taken in ((0, 1), (1, 1), (3, 2), (8, 8), (9, 8)):
        machine = Machine(num_gpus=num_gpus, num_cores=64, memory_bytes=1, name="")
        assert processes_here(train, machine) == taken


def test_cpu_chunk_is_the_losss() -> None:
    assert 2 * CPU_CHUNK_BYTES == CPU_LOSS_CHUNK_BYTES


@pytest.mark.parametrize("made_up", [False, True])
def test_steps_are_measured_and_nothing_stays(recipe_file: Path, trained_soon: Path, made_up: bool) -> None:
    more = ["data.tokenizer=nowhere/tokenizer", "train.init_from=nowhere", "evaluation.shards=nowhere"]
    recipe = load_recipe(recipe_file, more if made_up else [])
    before = sorted(recipe_file.parent.rglob("*"))
    found = measure(recipe, 1, CPU)
    assert sorted(recipe_file.parent.rglob("*")) == before
    assert list(trained_soon.iterdir()) == []
    assert found.made_up_rows == made_up
    assert found.num_steps == MEASURED_STEPS - UNCOUNTED_STEPS
    assert found.tokens_per_second == pytest.approx(8 * 64 / found.step_seconds)
    assert found.training_hours == pytest.approx(16 * found.step_seconds / 3600)
    assert found.hours >= found.training_hours
    assert (found.heldout_hours > 0) == made_up
    assert found.memory_bytes > 100e6  # a process with torch


@pytest.mark.slow
def test_ranks_are_measured_too(recipe_file: Path, trained_soon: Path) -> None:
    found = measure(load_recipe(recipe_file), 2, CPU)
    assert (found.num_processes, found.num_steps) == (2, MEASURED_STEPS - UNCOUNTED_STEPS)
    assert list(trained_soon.iterdir()) == []


@pytest.mark.usefixtures("on_cpu", "trained_soon")
def test_what_a_training_refuses_is_one_line(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(recipe_file), "--measure"]
    assert main([*words, "--set", "kernels.attention=flash_attn"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("cmbert: error: --measure: the training did not start: kernels.attention")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert main([*words, "--gpus", "4"]) == 2
    assert "4 processes, and this machine has 2 CPU cores and no GPU" in capsys.readouterr().err


MEASURED = Measured(
    num_processes=1, num_steps=7, step_seconds=2.0, tokens_per_second=256.0, training_hours=2.0, heldout_hours=0.5,
    start_seconds=6.0, memory_bytes=700_000_000, made_up_rows=True,
)  # fmt: skip


@pytest.mark.usefixtures("on_cpu")
def test_what_was_measured_is_said_drawn_and_in_the_json(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_module, "measure", lambda *given: MEASURED)
    words = ["plan", str(recipe_file), "--measure"]
    page = tmp_path / "plan.html"
    assert main([*words, "--page", str(page)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Time 2.5 h, 30.0 min of them held-out scores: 16 steps of 2 s, 256 tokens/s" in said
    assert "Memory 700 MB a process (measured); 8.00 GB are free here" in said
    drawn = page.read_text(encoding="utf-8")
    assert "2.5" in drawn
    assert "Failures" not in drawn.partition("In figures")[0]
    assert drawn.count("<svg") == 3  # learning rate, mask rate, batch
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["step_seconds"] == 2.0
    assert found["machine"]["num_cores"] == 2
    assert {"hours", "gpu_hours", "failures", "scaling", "memory_table"} <= found.keys()
    assert main([*words, "--long"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Time here   2.5 h")
    assert "Failures on" in said


def test_a_step_of_many_micro_batches_and_a_ramp_are_counted(recipe_file: Path) -> None:
    """Ten rows' time and one optimizer's a step: 64 rows take 6.4 times as long, the optimizer's step as long."""
    ramp = ["train.ramp_start_rows=32", "train.ramp_increment_rows=32", "train.ramp_tokens=16_384"]
    recipe = load_recipe(recipe_file, ["train.rows_per_step=64", "train.total_tokens=65_536", *ramp])
    small = load_recipe(recipe_file, ["train.rows_per_step=10", "train.micro_batch_rows=10"])
    record = {"optimizer_seconds": 0.5, "forward_seconds": 0.4, "step_seconds": 1.4, "data_wait_seconds": 0.1}
    records = [record | {"peak_memory_bytes": 5}, record | {"peak_memory_bytes": 7}]
    found = _extrapolate(recipe, small, 1, records, 3.0, False)
    assert found.step_seconds == pytest.approx(6.4 + 0.5)
    rows, steps = 65_536 // 64, 4 + 4 + (1024 - 4 * 32 - 4 * 64) // 64
    assert found.training_hours == pytest.approx((0.1 * rows + 0.5 * steps) / 3600, rel=0.05)
    assert found.memory_bytes == 7
