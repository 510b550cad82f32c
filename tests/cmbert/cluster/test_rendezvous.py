"""Ranks that meet, and ranks that do not: real processes, started as by hand; the missing are named, all end."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import DistNetworkError

from cmbert.cluster import rendezvous
from cmbert.cluster.distributed import Launch, read_launch
from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.errors import EXIT_TRANSIENT, EXIT_USER_ERROR, TransientError
from tests import forking
from tests.integration.launching import wait_for_output

END_SECONDS = 10  # bound of every end here
PROGRAM = """
import sys
from cmbert.cli import main
from cmbert.cluster import rendezvous

rendezvous.SAY_SECONDS, rendezvous.JOIN_SECONDS = 0.2, {join}
sys.exit(main(["train", *sys.argv[1:]]))
"""
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start(recipe_file: Path, tmp_path: Path) -> Iterator[Start]:
    """Start one rank of a training; what still runs at the end is killed."""
    started = []
    port = str(read_launch({}).port)

    def start_rank(rank: int, world_size: int, *, join: float = 300, **environment: str) -> subprocess.Popen:
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment,
        }  # fmt: skip
        program = PROGRAM.format(join=join)
        command = [sys.executable, "-c", program, str(recipe_file), "--set", f"run_directory={tmp_path}/run"]
        process = forking.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start_rank
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a rank's end; return its exit code and what it said since."""
    output, _ = process.communicate(timeout=END_SECONDS)
    assert "Traceback" not in output
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_rank_0_names_the_missing_and_ends_on_a_signal(start: Start, number: int) -> None:
    rank_0, rank_2 = start(0, 4), start(2, 4)
    wait_for_output(rank_0, "waiting for 2 of 4 ranks: ranks 1, 3; it listens at 127.0.0.1:")
    rank_0.send_signal(number)
    code, output = end(rank_0)
    assert code == end(rank_2)[0] == EXIT_STOPPED
    assert f"stopped before all ranks were there ({signal.Signals(number).name})" in output


def test_a_signal_at_any_rank_ends_those_that_wait(start: Start) -> None:
    rank_0, rank_1 = start(0, 4), start(1, 4)
    wait_for_output(rank_0, "ranks 2, 3; it listens")
    rank_1.send_signal(signal.SIGTERM)
    assert [end(rank)[0] for rank in (rank_0, rank_1)] == [EXIT_STOPPED, EXIT_STOPPED]


def test_a_rank_without_rank_0_says_so_and_ends_on_a_signal(start: Start) -> None:
    rank = start(1, 2)
    wait_for_output(rank, f"rank 1 on {socket.gethostname()}: waiting for rank 0 at 127.0.0.1:")
    rank.send_signal(signal.SIGTERM)
    assert end(rank)[0] == EXIT_STOPPED


@pytest.mark.parametrize("rank", [0, 1])
def test_the_wait_ends_by_itself(start: Start, rank: int) -> None:
    code, output = end(start(rank, 2, join=1))
    assert code == EXIT_TRANSIENT
    assert re.search(rf"cmbert.*: error: rank {rank} on .*: waited \d+ s for ", output)


def test_ranks_notice_that_rank_0_has_died(start: Start) -> None:
    rank_0, rank_1 = start(0, 4), start(1, 4)
    wait_for_output(rank_0, "waiting for 2 of 4 ranks: ranks 2, 3;")
    rank_0.kill()
    code, output = end(rank_1)
    assert code == EXIT_TRANSIENT
    assert "has ended before all ranks were there" in output


def gone(*arguments: object, **options: object) -> None:
    raise DistNetworkError("Broken pipe")


@pytest.mark.parametrize("store", [gone, lambda *arguments, **options: SimpleNamespace(set=gone)])
def test_a_rank_that_rank_0_did_not_count_stops_as_it_was_asked(
    store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has heard the signal, too, and is gone when this one reaches it, or says that it is there."""
    monkeypatch.setattr(rendezvous, "PrefixStore", lambda prefix, store: store)
    with socket.create_server(("127.0.0.1", 0)) as rank_0:
        launch = Launch(rank=1, world_size=2, local_rank=1, address="127.0.0.1", port=rank_0.getsockname()[1])
        monkeypatch.setattr(rendezvous, "TCPStore", store)
        assert rendezvous.meet(launch, lambda: True) is None
        with pytest.raises(TransientError, match="Broken pipe"):
            rendezvous.meet(launch, lambda: False)


def test_a_port_that_another_process_has_is_named(start: Start) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = end(start(0, 2, MASTER_PORT=str(port)))
    assert code == EXIT_USER_ERROR
    assert f"cannot listen on port {port}" in output
    assert "set MASTER_PORT" in output


def test_an_address_that_nobody_knows_is_named(start: Start) -> None:
    code, output = end(start(1, 2, MASTER_ADDR="nowhere.invalid"))
    assert code == EXIT_USER_ERROR
    assert re.search(r"nowhere\.invalid: .*; set MASTER_ADDR", output)


def test_a_late_rank_is_waited_for(start: Start) -> None:
    first = start(0, 2)
    wait_for_output(first, "rank 1; it listens")
    second = start(1, 2)
    wait_for_output(first, "starting on 2 x cpu")
    for rank in (first, second):
        rank.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert [end(rank)[0] for rank in (first, second)] == [EXIT_STOPPED, EXIT_STOPPED]
    assert time.monotonic() - began < END_SECONDS
