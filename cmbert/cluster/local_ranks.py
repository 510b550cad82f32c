"""The ranks of one machine, started and ended by this process: `cmbert train --processes N`. Torch-free.

A signal to stop is the ranks' to answer; this process passes it on, waits for them, and says each error once. When it
is gone they stop, too (`StopRequest.follow_launcher`).
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cmbert.cluster.ending import EXIT_FAILED, OTHER_RANK
from cmbert.cluster.launchers import launched_by
from cmbert.cluster.preemption import EXIT_STOPPED, STOP_SIGNALS, StopRequest
from cmbert.errors import ConfigError

OPTION = "--processes"
ADDRESS = "127.0.0.1"  # all ranks are here
POLL_SECONDS = 0.05  # between two looks at the ranks
PEERS_SECONDS = 15.0  # for ranks to end by themselves of another's end: 10 s is what tests/integration holds them to
LAST_LINES_SECONDS = 2.0  # for what a rank has said last, where a process of its own still holds the pipe
ERROR_LINE = re.compile(r"cmbert(?: \(rank \d+\))?: error: (.*)\n?")


def refuse_second_launcher(environment: Mapping[str, str]) -> None:
    """Raise ConfigError where another launcher has started this process, which starts its ranks itself."""
    if name := launched_by(environment):
        raise ConfigError(
            f"{OPTION}: a launcher has started this process already ({name} is set); leave {OPTION} out, or start "
            "cmbert without it"
        )


def without_option(words: Sequence[str]) -> list[str]:
    """Return a command line without --processes, however it is written."""
    left, rest = [], iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if len(name) <= len("--") or not OPTION.startswith(name):
            left.append(word)
        elif not equals:
            next(rest)
    return left


def run_ranks(count: int, words: Sequence[str], stop: StopRequest) -> int:
    """Run `cmbert` with the command line `words` as `count` ranks; return the run's exit code once all have ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # of the ranks, too, until they listen: none is lost
    ranks: list[_Rank] = []
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that rank 0 may listen there, and nobody else
        port.bind((ADDRESS, 0))
        shared = _shared_variables(count, port.getsockname()[1])
        try:
            for number in range(count):
                own = {"RANK": str(number), "LOCAL_RANK": str(number)}
                ranks.append(_Rank(number, [sys.executable, "-m", "cmbert", *words], {**os.environ, **shared, **own}))
            if stop.received is not None:
                _send(ranks, stop.received)
            ended = _wait(ranks)
        finally:
            _send(ranks, signal.SIGKILL)
    return _report(ended)


def _shared_variables(count: int, port: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads),
    }


@dataclass
class _Rank:
    """A rank's process; what it says on stderr is passed on, but for the lines that name an error."""

    number: int
    command: list[str]
    environment: dict[str, str]
    errors: list[str] = field(default_factory=list)
    """Texts after "error: ", in order."""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(self.command, env=self.environment, stderr=subprocess.PIPE)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line = raw.decode("utf-8", "backslashreplace")
            if found := ERROR_LINE.fullmatch(line):
                self.errors.append(found[1])
            else:
                sys.stderr.write(line)
                sys.stderr.flush()


def _send(ranks: Sequence[_Rank], number: int) -> None:
    for rank in ranks:
        rank.process.send_signal(number)  # nothing, if it has ended


def _wait(ranks: Sequence[_Rank]) -> list[_Rank]:
    """Pass signals on until all ranks have ended; return them in the order of their ends.

    Ranks that do not notice that another has failed, because they wait for it to come at all, are killed.
    """
    ended: list[_Rank] = []
    deadline = float("inf")
    while len(ended) < len(ranks):
        if found := signal.sigtimedwait(STOP_SIGNALS, POLL_SECONDS):
            _send(ranks, found.si_signo)
        ended += [rank for rank in ranks if rank not in ended and rank.process.poll() is not None]
        if deadline == float("inf") and any(_has_failed(rank) for rank in ended):
            deadline = time.monotonic() + PEERS_SECONDS
        if time.monotonic() > deadline:
            left = [rank for rank in ranks if rank not in ended]
            _send(left, signal.SIGKILL)
            for rank in left:
                rank.process.wait()
                rank.errors = [f"{OTHER_RANK}: it was killed"]
            return ended + left
    return ended


def _has_failed(rank: _Rank) -> bool:
    return rank.process.returncode not in (0, EXIT_STOPPED)


def _report(ended: Sequence[_Rank]) -> int:
    """Say each error of the ranks once, on stderr; return the exit code of the run."""
    for rank in ended:
        rank.reader.join(LAST_LINES_SECONDS)
        if rank.process.returncode < 0 and not rank.errors:
            rank.errors.append(
                f"rank {rank.number} was killed by {signal.Signals(-rank.process.returncode).name}; most often the "
                "machine was out of memory: ask for less; the same command continues from the newest checkpoint"
            )
    said = {error: [one.number for one in ended if error in one.errors] for rank in ended for error in rank.errors}
    causes = [error for error in said if not error.startswith(OTHER_RANK)]
    for error in causes or list(said)[:1]:
        who = f"cmbert (rank {said[error][0]})" if said[error][0] and len(said[error]) == 1 else "cmbert"
        print(f"{who}: error: {error}", file=sys.stderr)
    codes = [rank.process.returncode for rank in ended if rank.process.returncode]
    failures = [code for code in codes if code != EXIT_STOPPED]
    telling = [code for code in failures if code > 0 and code != EXIT_FAILED]
    return (telling or [EXIT_FAILED] * bool(failures) or codes or [0])[0]
