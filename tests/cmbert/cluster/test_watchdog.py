"""A hung rank ends the run: real processes with gloo, a limit of two seconds, no step without a time limit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmbert.cluster.distributed import Launch, read_launch
from cmbert.cluster.watchdog import EXIT_HUNG, Place, Watchdog, summarise
from tests import forking

WORLD_SIZE = 2
TIMEOUT = 90  # seconds for a test's processes: torch's import takes 10 s on a busy machine
PRELUDE = """
import ctypes, os, sys, time
from pathlib import Path
from typing import Any
import torch, torch.distributed
from cmbert.cluster import watchdog
from cmbert.cluster.distributed import read_launch

watchdog.GRACE_SECONDS = 3.0
launch = read_launch(os.environ)
rank = launch.rank
if launch.world_size > 1:
    torch.distributed.init_process_group("gloo")
dog = watchdog.Watchdog(Path(sys.argv[1]), launch, float(sys.argv[2]))
dog.start()

def read_forever():
    time.sleep(10_000)

def join(step=7):
    dog.enter("forward and backward", step)
    torch.distributed.all_reduce(torch.zeros(1))

def be_ready():
    Path(sys.argv[1], f"ready_{rank}").touch()
"""
ONE_READS_FOREVER = """
try:
    dog.enter("data", 7)
    if rank == 1:
        read_forever()
    join()  # gloo raises here once the other rank has left
finally:
    dog.stop()
"""
ALL_JOIN_FOREVER = """
dog.enter("data", 0)
join(0)
be_ready()
for step in range(1, 1_000_000):
    dog.enter("data", step)
    time.sleep(0.01)
    join(step)
"""
ONE_PAUSES_FOREVER = """
try:
    if rank == 1:
        dog.pause("set-up", 0)
        read_forever()
    dog.enter("data", 7)
    join()
finally:
    dog.stop()
"""
STEADY = """
for step in range(100):  # twice the limit
    dog.enter("data", step)
    time.sleep(0.04)
    join(step)
dog.pause("set-up", 100)
time.sleep(2.5)
dog.stop()
torch.distributed.destroy_process_group()
"""
KEEPS_THE_GIL = """
def keep_the_gil():
    ctypes.PyDLL(None).sleep(60)

dog.enter("data", 7)
time.sleep(0.5)
keep_the_gil()
"""
FORKS = """
dog.enter("data", 7)
for _ in range(3):
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        sys.exit(0)  # with Python's finalisation, where a timer that was forked would wait for its thread
    os.waitpid(child, 0)
    dog.enter("data", 7)
dog.stop()
"""


@contextmanager
def started(
    code: str,
    logs: Path,
    *,
    limit: float = 2.0,
    world_size: int = WORLD_SIZE,
    popen: type[subprocess.Popen] = forking.Popen,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the ranks, and kill what is left of them at the end."""
    port = read_launch({}).port
    ranks = []
    try:
        for rank in range(world_size):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-c", PRELUDE + code, str(logs), str(limit)]
            ranks.append(popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate(timeout=TIMEOUT)


def run(code: str, logs: Path, *, world_size: int = WORLD_SIZE, **how: Any) -> tuple[list[int], list[str]]:
    """Return the exit code and the watchdog's part of stderr of each rank."""
    with started(code, logs, world_size=world_size, **how) as ranks:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in ranks]
        return [process.returncode for process in ranks], [said(error) for error in errors]


def said(error: str) -> str:
    """Keep the watchdog's lines, and Python's errors; torch's warnings about the store go."""
    return "\n".join(line for line in error.splitlines() if "watchdog" in line or "Error" in line)


def stacks(logs: Path, rank: int) -> str:
    return (logs / f"rank_{rank:05d}_stacks.txt").read_text()


def test_a_rank_that_never_joins_is_named(tmp_path: Path) -> None:
    codes, lines = run(ONE_READS_FOREVER, tmp_path)
    assert codes == [EXIT_HUNG] * WORLD_SIZE, lines
    assert " in join" in stacks(tmp_path, 0)
    assert " in read_forever" in stacks(tmp_path, 1)
    header = r"^\S+T\S+ rank 1 on \S+: step 7, phase 'data', [2-9] s in it"
    assert re.match(header, stacks(tmp_path, 1)), stacks(tmp_path, 1)
    everything = "\n".join(lines)
    assert everything.count("no progress for") == 1  # one rank sums up
    summary = r"rank 0 waits in 'forward and backward' of step 7; rank 1 is in 'data' of step 7 on \S+ <- look there"
    assert re.search(summary, everything), everything
    for rank in range(WORLD_SIZE):
        own_line = rf"rank {rank} on \S+: step 7, phase .*; stacks in {tmp_path}/rank_0000{rank}_stacks.txt"
        assert re.search(own_line, lines[rank]), lines[rank]


def test_a_rank_without_a_limit_answers_and_ends_too(tmp_path: Path) -> None:
    codes, lines = run(ONE_PAUSES_FOREVER, tmp_path)
    assert codes == [EXIT_HUNG] * WORLD_SIZE, lines
    assert "another rank made no progress" in stacks(tmp_path, 1)
    assert re.search(r"rank 1 is in 'set-up' of step 0 on \S+ <- look there", "\n".join(lines)), lines


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        (1, r"rank 1 did not answer \(stopped, dead or no longer running\) <- look there"),
        (0, r"the ranks' store did not answer in 9 s; it is with rank 0, at 127\.0\.0\.1:\d+ <- look there"),
    ],
)
def test_a_stopped_process_does_not_answer(tmp_path: Path, stopped: int, expected: str) -> None:
    with started(ALL_JOIN_FOREVER, tmp_path) as ranks:
        deadline = time.monotonic() + TIMEOUT
        while len(list(tmp_path.glob("ready_*"))) < WORLD_SIZE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks[stopped].send_signal(signal.SIGSTOP)
        other = ranks[1 - stopped]
        error = said(other.communicate(timeout=TIMEOUT)[1])
        assert other.returncode == EXIT_HUNG, error
        assert re.search(expected, error), error
        assert " in join" in stacks(tmp_path, 1 - stopped)


def test_steady_beats_leave_nothing(tmp_path: Path) -> None:
    codes, lines = run(STEADY, tmp_path)
    assert (codes, lines) == ([0] * WORLD_SIZE, [""] * WORLD_SIZE)
    assert not list(tmp_path.iterdir())


def test_alone_without_a_process_group(tmp_path: Path) -> None:
    codes, lines = run('dog.enter("checkpoint", 3)\nread_forever()', tmp_path, world_size=1)
    assert codes == [EXIT_HUNG]
    assert len(lines[0].splitlines()) == 1
    assert "rank 0 on" in lines[0]
    assert "step 3, phase 'checkpoint'" in lines[0]
    assert " in read_forever" in stacks(tmp_path, 0)


def test_a_main_thread_that_keeps_the_gil_ends(tmp_path: Path) -> None:
    codes, _ = run(KEEPS_THE_GIL, tmp_path, world_size=1)
    assert codes == [1]  # faulthandler's own
    assert " in keep_the_gil" in stacks(tmp_path, 0)


def test_forked_children_end(tmp_path: Path) -> None:
    assert run(FORKS, tmp_path, limit=20, world_size=1, popen=subprocess.Popen) == ([0], [""])


def alone() -> Launch:
    return read_launch({})


def test_off(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "logs", alone(), 0)
    watchdog.start()
    watchdog.enter("data", 0)
    watchdog.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.alone
def test_a_beat_is_cheap(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, alone(), 600)
    times = []
    for _ in range(5):
        started_at = time.perf_counter()
        for step in range(1000):
            watchdog.enter("data", step)
        times.append((time.perf_counter() - started_at) / 1000)
    assert min(times) < 20e-6


def test_a_late_look_does_not_count_as_a_hang(tmp_path: Path) -> None:
    """A process that was stopped, and goes on, has not hung: the limit was not its own."""
    with started('dog.enter("data", 0)\nbe_ready()\ntime.sleep(3)\ndog.stop()', tmp_path, limit=6, world_size=1) as one:
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "ready_0").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        one[0].send_signal(signal.SIGSTOP)
        time.sleep(5)
        one[0].send_signal(signal.SIGCONT)
        error = one[0].communicate(timeout=TIMEOUT)[1]
        assert (one[0].returncode, said(error)) == (0, "")


def places(*groups: tuple[range | list[int], int, str, int]) -> dict[int, Place]:
    return {
        rank: Place(rank, f"node{rank // 4}", step, phase, count)
        for ranks, step, phase, count in groups
        for rank in ranks
    }


def test_the_summary_points_at_those_behind() -> None:
    text = summarise(places(([0, *range(2, 8)], 12, "optimizer", 39), ([1], 12, "data", 37)), 9, 600.4)
    assert text == (
        "no progress for 600 s: ranks 0, 2-7 wait in 'optimizer' of step 12; rank 1 is in 'data' of step 12 on node0 "
        "<- look there; rank 8 did not answer (stopped, dead or no longer running) <- look there"
    )
    many_behind = summarise(places((range(4, 448), 13, "data", 40), (range(4), 13, "evaluation", 41)), 448, 600)
    assert "ranks 0-3 wait in 'evaluation' of step 13; ranks 4-447 are in 'data' of step 13 on 111 hosts" in many_behind


def test_the_summary_when_nobody_is_behind() -> None:
    text = summarise(places((range(8), 12, "optimizer", 39)), 8, 60)
    assert (
        text == "no progress for 60 s: ranks 0-7 wait in 'optimizer' of step 12; none is behind: compare their stacks"
    )
