"""Whatever ends a rank ends its children and the other ranks within ten seconds, in one line, with the right code."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.cluster.ending import EXIT_FAILED
from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.errors import EXIT_TRANSIENT, EXIT_USER_ERROR
from cmbert.runs.metrics import read_metrics
from tests import processes
from tests.integration.launching import settings, start, train
from tests.processes import Process, descendants, left_of

SECONDS = 10  # the bound
LOADERS = settings("data.num_workers=2")
slow = pytest.mark.slow


class Life:
    """A training of some ranks, each started as srun would: with a port to meet at, without a launcher that kills."""

    def __init__(self, recipe: Path, ranks: int, *setting: str, fault: str = ""):
        from cmbert.cluster.distributed import read_launch

        self.run = recipe.parent / "run"
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(read_launch({}).port)}
        self.ranks = []
        for rank in range(ranks):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            self.ranks.append(start(recipe, *LOADERS, *setting, fault=fault, environment=own))
        self.said: list[list[str]] = [[] for _ in self.ranks]
        self.readers = [threading.Thread(target=self._read, args=(number,)) for number in range(ranks)]
        for reader in self.readers:
            reader.start()

    def _read(self, number: int) -> None:
        for line in self.ranks[number].stdout or ():
            self.said[number].append(line.rstrip("\n"))

    def wait_for_steps(self, count: int) -> None:
        """Wait until so many steps are recorded: every rank trains, and has its loader processes."""
        while not ((self.run / "metrics.jsonl").is_file() and len(read_metrics(self.run)) >= count):
            assert [rank.poll() for rank in self.ranks] == [None] * len(self.ranks), self.said
            time.sleep(0.02)

    def wait_until_heard(self, number: int) -> None:
        """Wait until each rank has a handler for a signal: the first thing that it does."""
        for one in self.ranks:
            while not processes.catches(one.pid, number):
                assert one.poll() is None
                time.sleep(0.002)

    def processes(self, rank: int | None = None) -> list[Process]:
        """Return all processes of one rank, or of all."""
        chosen = self.ranks if rank is None else [self.ranks[rank]]
        found = [[*filter(None, (processes.find(one.pid) or (None,))[:1]), *descendants(one.pid)] for one in chosen]
        return [one for of_rank in found for one in of_rank]

    def end_within(self, seconds: float, known: list[Process]) -> list[int]:
        """Wait for the ranks' end; nothing may be left of `known`. Return the exit codes."""
        deadline = time.monotonic() + seconds
        try:
            for one in self.ranks:
                one.wait(max(0.1, deadline - time.monotonic()))
            assert left_of(known, max(0.1, deadline - time.monotonic())) == []
        finally:
            for one in self.ranks:
                one.kill()
            for process in left_of(known, 0):
                os.kill(process.pid, signal.SIGKILL)
            for reader in self.readers:
                reader.join()
        return [one.returncode for one in self.ranks]

    def last_line(self, rank: int) -> str:
        return self.said[rank][-1]


def complaints(lines: list[str]) -> list[str]:
    """Return our lines about errors, and Python's; torch's C++ reports a lost store with a stack of its own."""
    ours = [line for line in lines if not line.startswith(("frame #", "[rank", "[W", "[E"))]
    return [line for line in ours if any(word in line for word in ("rror:", "Traceback", "Warning"))]


FOREVER = settings("train.total_tokens=40960000", "train.checkpoint_every_steps=1000000", "schedule.warmup_tokens=0")


@pytest.mark.parametrize(
    ("ranks", "victim", "code", "line"),
    [
        (2, "loader", EXIT_TRANSIENT, "a loader process (pid {pid}) was killed by SIGKILL; most often"),
        (2, "rank", -signal.SIGKILL, ""),
        pytest.param(1, "loader", EXIT_TRANSIENT, "a loader process (pid {pid}) was killed by SIGKILL", marks=slow),
        pytest.param(2, "first rank", -signal.SIGKILL, "", marks=slow),
        pytest.param(1, "rank", -signal.SIGKILL, "", marks=slow),
    ],
)
def test_kill(recipe_file: Path, ranks: int, victim: str, code: int, line: str) -> None:
    """kill -9 of one process, in the last rank; hang_seconds is at its default, half an hour."""
    life = Life(recipe_file, ranks, *FOREVER)
    life.wait_for_steps(3)
    known = life.processes()
    assert len(processes.loaders(known)) == 2 * ranks
    hit = 0 if victim == "first rank" else ranks - 1
    below = life.processes(hit)
    pid = (processes.loaders(below) if victim == "loader" else below)[0].pid
    os.kill(pid, signal.SIGKILL)
    codes = life.end_within(SECONDS, known)
    assert codes == [code if rank == hit else EXIT_FAILED for rank in range(ranks)], life.said
    for rank in range(ranks):
        errors = complaints(life.said[rank])
        if rank != hit:
            assert errors == [life.last_line(rank)], life.said[rank]
            assert "error: another rank has ended: " in errors[0]
            assert line.format(pid=pid) in errors[0]
        elif line:
            assert errors == [life.last_line(rank)], life.said[rank]
            assert line.format(pid=pid) in errors[0]
        else:
            assert errors == []


@slow
@pytest.mark.parametrize("helpers", [processes.fork_servers, processes.resource_trackers])
def test_python_s_own_helpers_are_not_missed(
    recipe_file: Path, helpers: Callable[[list[Process]], list[Process]]
) -> None:
    """kill -9 of the fork server or the resource tracker: the loader processes live, and training goes on."""
    life = Life(recipe_file, 1, *FOREVER)
    life.wait_for_steps(3)
    known = life.processes()
    (helper,) = helpers(known)
    os.kill(helper.pid, signal.SIGKILL)
    life.wait_for_steps(len(read_metrics(life.run)) + 20)
    life.ranks[0].send_signal(signal.SIGUSR1)
    assert life.end_within(SECONDS, known) == [EXIT_STOPPED]
    assert "stopped at step" in life.last_line(0)
    assert complaints(life.said[0]) == []


@slow
def test_all_ranks_are_killed(recipe_file: Path) -> None:
    life = Life(recipe_file, 2, *FOREVER)
    life.wait_for_steps(3)
    known = life.processes()
    for one in life.ranks:
        one.kill()
    assert life.end_within(SECONDS, known) == [-signal.SIGKILL] * 2
    assert [complaints(said) for said in life.said] == [[]] * len(life.ranks)


@pytest.mark.parametrize(
    ("ranks", "fault", "code", "line"),
    [
        (2, "raise", EXIT_FAILED, "RuntimeError: the world is broken"),
        pytest.param(1, "raise", EXIT_FAILED, "RuntimeError: the world is broken", marks=slow),
        pytest.param(1, "data_raise", EXIT_FAILED, "RuntimeError: the loader is broken", marks=slow),
        pytest.param(2, "data_shard", EXIT_USER_ERROR, "a shard is damaged; copy it again", marks=slow),
        pytest.param(2, "data_kill", EXIT_TRANSIENT, "was killed by SIGKILL; most often", marks=slow),
        pytest.param(2, "save_raise", EXIT_FAILED, "ValueError: the thread is broken", marks=slow),
    ],
)
def test_an_error_in_any_room(recipe_file: Path, ranks: int, fault: str, code: int, line: str) -> None:
    life = Life(recipe_file, ranks, *settings("guards.hang_seconds=0"), fault=f"{fault}:8:{ranks - 1}")
    known: list[Process] = []
    try:
        life.wait_for_steps(1)
        known = life.processes()
    except AssertionError:  # a loader process is ahead of the trainer: it has ended before the first step was recorded
        assert fault.startswith("data_")
    codes = life.end_within(2 * SECONDS, known)  # the steps before the fault, too
    assert codes == [EXIT_FAILED] * (ranks - 1) + [code], life.said
    assert life.last_line(ranks - 1) == f"cmbert{' (rank 1)' if ranks > 1 else ''}: error: {line}" or line in (
        life.last_line(ranks - 1)
    )
    assert ("Traceback" in "".join(life.said[-1])) == (code == EXIT_FAILED)
    if ranks > 1:
        errors = complaints(life.said[0])
        assert len(errors) == 1, life.said[0]
        assert errors[0].startswith("cmbert (rank 0): error: another rank has ended: rank 1 on ")
        assert line in errors[0]


@pytest.mark.parametrize(
    ("ranks", "when", "number"),
    [
        (2, "from the first moment", signal.SIGUSR1),
        pytest.param(1, "from the first moment", signal.SIGTERM, marks=slow),
        pytest.param(1, "in steps", signal.SIGINT, marks=slow),
        pytest.param(2, "in steps", signal.SIGTERM, marks=slow),
        pytest.param(2, "in steps", signal.SIGUSR1, marks=slow),
    ],
)
def test_signals_to_every_process(recipe_file: Path, ranks: int, when: str, number: int) -> None:
    """Again and again, to all that lives, helpers included, as Slurm and a terminal send them: one orderly stop."""
    life = Life(recipe_file, ranks, *FOREVER)
    if when == "in steps":
        life.wait_for_steps(3)
    else:
        life.wait_until_heard(number)
    known: set[Process] = set()
    while any(one.poll() is None for one in life.ranks):
        for process in life.processes():
            known.add(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        time.sleep(0.05)
    assert life.end_within(SECONDS, list(known)) == [EXIT_STOPPED] * ranks, life.said
    moments = ("at step",) if when == "in steps" else ("at step", "before all ranks were there", "before it began")
    assert any(f": stopped {moment}" in life.last_line(0) for moment in moments)
    assert [complaints(said) for said in life.said] == [[]] * len(life.ranks)


@slow
def test_the_launcher_is_killed(recipe_file: Path) -> None:
    """Ranks whose torchrun is gone save and end; nobody else would end them."""
    process = start(recipe_file, *LOADERS, *FOREVER, ranks=2)
    metrics = recipe_file.parent / "run" / "metrics.jsonl"
    while not (metrics.is_file() and len(read_metrics(metrics.parent)) >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    known = descendants(process.pid)
    assert len(processes.loaders(known)) == 4
    process.kill()
    process.wait()
    assert left_of(known, SECONDS) == []
    output = process.stdout.read() if process.stdout else ""
    assert "(the launcher has ended); the same command continues" in output
    done = len(read_metrics(metrics.parent))
    again = train(recipe_file, *LOADERS, *FOREVER, "--max-steps", "1", ranks=2)
    assert f"resuming at step {done}" in again
