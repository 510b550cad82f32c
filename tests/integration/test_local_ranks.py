"""`cmbert train --processes N`: the ranks are those of any launcher, and each ending is one line and one code."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.cluster.ending import EXIT_FAILED
from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.errors import EXIT_USER_ERROR
from cmbert.runs.metrics import read_metrics
from tests.integration.launching import children, settings, start, trace, train
from tests.processes import descendants, left_of

SECONDS = 20  # the bound of an end: ten of the ranks', as test_endings holds them to, and the parent's
COLD_SECONDS = 120  # where the ranks have yet to import torch
TWO = ("--processes", "2")
FOREVER = settings("train.total_tokens=40960000", "train.checkpoint_every_steps=1000000", "schedule.warmup_tokens=0")
slow = pytest.mark.slow


def wait_for_steps(process: subprocess.Popen, run: Path, count: int) -> None:
    while not ((run / "metrics.jsonl").is_file() and len(read_metrics(run)) >= count):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


def end_of(process: subprocess.Popen, seconds: float = SECONDS) -> tuple[int, list[str]]:
    """Return exit code and lines; nothing that it has started may be left."""
    known = descendants(process.pid)
    output, _ = process.communicate(timeout=seconds)
    assert left_of(known, SECONDS) == []
    return process.returncode, output.splitlines()


def errors_in(lines: list[str]) -> list[str]:
    ours = [line for line in lines if not line.startswith(("frame #", "[rank", "[W", "[E"))]
    return [line for line in ours if any(word in line for word in ("rror:", "Traceback", "Warning"))]


def test_ranks_are_those_of_torchrun(recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]) -> None:
    output = train(recipe_file, *TWO, *settings(f"run_directory={tmp_path}/ours"))
    assert trace(tmp_path / "ours") == trace(reference(recipe_file, ranks=2))
    assert output.count("starting on 2 x cpu") == 1
    assert errors_in(output.splitlines()) == []
    again = train(recipe_file, "--processes", "1", *settings(f"run_directory={tmp_path}/ours"))
    assert "already finished" in again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (settings("train.seed=abc"), "train.seed"),
        (settings("data.tokenizer=nowhere"), "nowhere"),  # what the ranks find, both
        (("--processes", "3"), "train.rows_per_step: 8 rows do not divide over 3 GPUs (ranks)"),
        (("--processes", "0"), "argument --processes: 0: must be a whole number from 1 to 1024"),
    ],
)
def test_a_mistake_is_one_line(recipe_file: Path, words: tuple[str, ...], said: str) -> None:
    lines = train(recipe_file, *TWO, *words, code=EXIT_USER_ERROR).splitlines()
    errors = [line for line in lines if "rror:" in line]
    assert len(errors) == 1, lines
    assert errors[0].startswith(("cmbert: error: ", "cmbert train: error: "))
    assert said in errors[0]
    assert not (recipe_file.parent / "run").exists()


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_two_launchers_are_one_too_many(recipe_file: Path, name: str) -> None:
    output = train(recipe_file, *TWO, environment={name: "0"}, code=EXIT_USER_ERROR)
    assert f"--processes: a launcher has started this process already ({name} is set)" in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGTERM, False, marks=slow),
        pytest.param(signal.SIGUSR1, False, marks=slow),
    ],
)
def test_a_signal_saves_and_ends_in_one_line(recipe_file: Path, number: int, to_all: bool) -> None:
    """To the parent as `kill` sends it, or to all at once, as a terminal does; the second one changes nothing."""
    process = start(recipe_file, *TWO, *FOREVER)
    wait_for_steps(process, recipe_file.parent / "run", 3)
    for _ in range(2):
        for pid in [process.pid, *(children(process.pid) if to_all else [])]:
            os.kill(pid, number)
    code, lines = end_of(process)
    assert code == EXIT_STOPPED, lines
    assert f"({signal.Signals(number).name}); the same command continues" in lines[-1]
    assert errors_in(lines) == []
    assert "resuming at step" in train(recipe_file, *TWO, *FOREVER, "--max-steps", "1")


@slow
def test_a_signal_at_the_first_moment(recipe_file: Path) -> None:
    """Before the ranks listen, which Python started cold does late: none dies of it."""
    process = start(recipe_file, *TWO, *FOREVER, popen=subprocess.Popen)
    while len(children(process.pid)) < 2:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    code, lines = end_of(process, COLD_SECONDS)
    assert code == EXIT_STOPPED, lines
    assert errors_in(lines) == []
    assert len([line for line in lines if "instructions for bf16" not in line]) == 1, lines


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=slow)])
def test_a_rank_is_killed(recipe_file: Path, rank: int) -> None:
    process = start(recipe_file, *TWO, *FOREVER)
    wait_for_steps(process, recipe_file.parent / "run", 3)  # the first child is the server of forks
    os.kill(sorted(children(process.pid))[rank - 2], signal.SIGKILL)
    code, lines = end_of(process)
    assert code == EXIT_FAILED
    (error,) = errors_in(lines)
    assert error.startswith(f"cmbert{' (rank 1)' if rank else ''}: error: rank {rank} was killed by SIGKILL; ")


@slow
def test_a_rank_that_never_came_is_not_waited_for(recipe_file: Path) -> None:
    process = start(recipe_file, *TWO, *FOREVER, popen=subprocess.Popen)
    while len(children(process.pid)) < 2:
        assert process.poll() is None
    os.kill(sorted(children(process.pid))[1], signal.SIGKILL)
    code, lines = end_of(process, COLD_SECONDS)
    assert code == EXIT_FAILED
    assert len(errors_in(lines)) == 1, lines


@slow
def test_the_parent_is_killed(recipe_file: Path) -> None:
    process = start(recipe_file, *TWO, *FOREVER)
    wait_for_steps(process, recipe_file.parent / "run", 3)
    known = descendants(process.pid)
    process.kill()
    process.wait()
    assert left_of(known, SECONDS) == []
    output = process.stdout.read() if process.stdout else ""
    assert "(the launcher has ended); the same command continues" in output


@slow
def test_nobody_reads_what_is_said(recipe_file: Path) -> None:
    process = start(recipe_file, *TWO)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0  # as one process: the work goes on without its log lines
    assert len(read_metrics(recipe_file.parent / "run")) == 16


def test_the_parent_imports_no_torch() -> None:
    code = "import sys, cmbert.cli, cmbert.cluster.local_ranks, cmbert.config.deepspeed; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
