"""The watchdog: a rank without progress ends the run, with every rank's stack, rather than hang a cluster.

Ranks talk through the store that they met in, see listener.py. A rank whose clock ran out sets the key of
every rank; each then writes its stacks, publishes where it is and leaves.
"""

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, DistStoreError, Store

from cmbert.cluster.distributed import Launch
from cmbert.cluster.ending import claim
from cmbert.cluster.listener import ALARM, KEY, PARTING_SECONDS, Listener, background, connection_to, key
from cmbert.errors import first_line

EXIT_HUNG = 70  # EX_SOFTWARE of sysexits.h
STDERR = 2  # written to directly: a hung main thread may hold the lock of sys.stderr
# Ours. A limit is noticed within a twentieth of it; a look costs one short-lived thread (80 us), hence 5 s at most.
LOOKS_PER_LIMIT, LONGEST_LOOK_SECONDS = 20, 5.0
# Ours. An answer takes milliseconds; 10 s also cover 1,000 ranks that connect at once and a machine that swaps.
GRACE_SECONDS = 10.0
WRITE_SECONDS = 5.0  # for a stacks file (tens of kB) or a line; what takes longer does not come back
HOSTS_NAMED = 4  # a place with more hosts is not the fault of one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Beat:
    """Where the main thread is; `count` is the number of phases it entered, alike on ranks in the same place."""

    phase: str
    step: int
    count: int
    limited: bool


@dataclass(frozen=True)
class Place:
    """Where a rank was when the alarm was given; `count` phases lie behind it."""

    rank: int
    host: str
    step: int
    phase: str
    count: int


class Watchdog:
    """Ends the process with EXIT_HUNG when the main thread enters no new phase for `limit_seconds` (0: never).

    Every rank must enter the same phases in the same order: their number tells who is behind. Time in which the process
    itself was stopped does not count. A main thread that keeps the GIL for the whole limit leaves no thread of Python's
    to notice: faulthandler's timer, wound up again at each look (80 us, outside the main thread), then writes the
    stacks and ends the process, with its own code 1; so it does when a process continues that was stopped for longer
    than the limit.
    """

    def __init__(self, logs: Path, launch: Launch, limit_seconds: float):
        self.path = logs / f"rank_{launch.rank:05d}_stacks.txt"
        self.launch, self.limit = launch, limit_seconds
        self._look = min(limit_seconds / LOOKS_PER_LIMIT, LONGEST_LOOK_SECONDS)
        self._beat = _Beat("set-up", 0, 0, limited=False)
        self._wake = threading.Event()
        self._stopped = self._told = False
        self.listener = Listener(launch, self._hear)
        self._thread: threading.Thread | None = None
        self._stacks = -1  # file descriptors, opened while the file systems still answer
        self._scratch = -1

    def start(self) -> None:
        """Start watching; after start_distributed, and without a limit until the first `enter`. Raises OSError."""
        self.listener.start()
        if self.limit <= 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # keeps an earlier run's stacks
        self._scratch = os.memfd_create(KEY)
        # A child forked while the timer is wound up waits at its exit for a thread that it does not have.
        os.register_at_fork(before=faulthandler.cancel_dump_traceback_later)
        self._thread = background(self._watch)

    def enter(self, phase: str, step: int) -> None:
        """Say that the main thread has got to `phase` of `step`: a beat, 1 us."""
        self._beat = _Beat(phase, step, self._beat.count + 1, limited=True)

    def pause(self, phase: str, step: int) -> None:
        """Enter a phase that may take any time; the next `enter` sets the limit again. Other ranks' limits go on."""
        self._beat = _Beat(phase, step, self._beat.count + 1, limited=False)

    def stop(self) -> None:
        """End the watch, also after an error; before stop_distributed. Does not return after an alarm."""
        self._stopped = True
        self.listener.stop(WRITE_SECONDS)
        if self._thread is None:
            return
        self._wake.set()
        self._thread.join(WRITE_SECONDS)
        if self._thread.is_alive():  # the alarm is given, and gloo raised in the main thread as a peer had left
            time.sleep(_ending_seconds())  # that thread ends the process, and with its code
        faulthandler.cancel_dump_traceback_later()
        self._thread = None
        empty = os.fstat(self._stacks).st_size == 0
        os.close(self._stacks)
        os.close(self._scratch)
        if empty:
            self.path.unlink(missing_ok=True)

    def _hear(self) -> None:
        """Called in the listener's thread at another rank's alarm."""
        self._told = True
        self._wake.set()

    def _watch(self) -> None:
        """Count the seconds since the last beat, and give the alarm at the limit or when told."""
        seen, idle, looked = self._beat, 0.0, time.monotonic()
        while not self._stopped:
            if self._beat.limited:
                faulthandler.dump_traceback_later(self.limit, exit=True, file=self._stacks)
            else:
                faulthandler.cancel_dump_traceback_later()
            self._wake.wait(self._look)
            now = time.monotonic()
            if self._beat is not seen:
                seen, idle = self._beat, 0.0
            else:  # a look that came late: we were stopped, and so was the main thread
                idle += min(now - looked, 2 * self._look)
            looked = now
            if not self._stopped and (self._told or (seen.limited and idle >= self.limit)):
                if claim():  # else this rank is ending already
                    self._end(seen, idle)
                return

    def _end(self, beat: _Beat, idle: float) -> None:
        """Write the stacks, tell the others, and leave. No step of it waits without limit."""
        # If a call below keeps the GIL. To the scratch file, in memory: that write cannot hang.
        faulthandler.dump_traceback_later(_ending_seconds(), exit=True, file=self._scratch)
        rank, world_size = self.launch.rank, self.launch.world_size
        host = socket.gethostname()
        # faulthandler writes with the GIL held; into memory first, because the file's system may be what hangs.
        faulthandler.dump_traceback(file=self._scratch, all_threads=True)
        why = "another rank made no progress" if self._told else "no progress"
        where = f"rank {rank} on {host}: step {beat.step}, phase {beat.phase!r}, {idle:.0f} s in it; {why}"
        header = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {where}\n"
        telling = background(self._tell, Place(rank, host, beat.step, beat.phase, beat.count), idle)
        writing = background(_write, self._stacks, header.encode() + _contents(self._scratch) + b"\n")
        writing.join(WRITE_SECONDS)
        stacks = f"the file system of {self.path} does not answer" if writing.is_alive() else f"stacks in {self.path}"
        self._say(f"{where}; {stacks}")
        telling.join(_telling_seconds())
        if telling.is_alive():
            self._say(
                f"rank {rank}: the ranks' store did not answer in {_telling_seconds():.0f} s; it is with rank 0, at "
                f"{self.launch.address}:{self.launch.port} <- look there. Where the {world_size} ranks are is not known"
            )
        os._exit(EXIT_HUNG)  # a collective that hangs cannot be unwound

    def _say(self, line: str) -> None:
        background(_write, STDERR, f"cmbert: watchdog: {line}\n".encode()).join(WRITE_SECONDS)

    def _tell(self, place: Place, idle: float) -> None:
        """Publish where this rank is. The first rank of all collects the places; the others wait until it has."""
        store = self.listener.store
        if store is None:
            return
        try:
            client = connection_to(store)
            is_first = client.add(key("alarms"), 1) == 1
            client.set(key("place", place.rank), json.dumps(vars(place)))
            if is_first:  # electing the lowest rank instead would have every rank read
                for rank in range(self.launch.world_size):
                    client.set(key("wake", rank), ALARM)
                self._say(summarise(self._collect(client), self.launch.world_size, idle))
                client.set(key("done"), "")
            else:  # a launcher kills the others at the first exit: none before the report is out
                client.wait([key("done")], timedelta(seconds=2 * GRACE_SECONDS))
            time.sleep(PARTING_SECONDS)
        except DistError as error:
            reason = first_line(error)
            self._say(f"rank {place.rank}: the ranks' store failed ({reason}); it is with rank 0, which may be gone")

    def _collect(self, client: Store) -> Mapping[int, Place]:
        """Return the places of the ranks that answer within GRACE_SECONDS."""
        keys = {rank: key("place", rank) for rank in range(self.launch.world_size)}
        try:
            client.wait(list(keys.values()), timedelta(seconds=GRACE_SECONDS))
        except DistStoreError:
            keys = {rank: key for rank, key in keys.items() if client.check([key])}
        return {rank: Place(**json.loads(client.get(key))) for rank, key in keys.items()}


def _telling_seconds() -> float:
    return 3 * GRACE_SECONDS  # to connect, to wait for the others, to read and print (448 ranks on 2 cores: 5 s)


def _ending_seconds() -> float:
    return _telling_seconds() + 4 * WRITE_SECONDS  # and for the stacks and three lines


def _contents(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _write(descriptor: int, text: bytes) -> None:
    try:
        while text:
            text = text[os.write(descriptor, text) :]
    except OSError as error:  # a full disk or a closed stderr: the exit code still tells
        logger.debug("watchdog: %s", error)


def summarise(places: Mapping[int, Place], world_size: int, seconds: float) -> str:
    """Say who waits where and where to look: at the ranks behind, and at those that did not answer.

    No rank passes a collective that another has not joined, so those behind hold up the others, few or many.
    """
    groups: dict[tuple[int, str], list[Place]] = {}
    for place in sorted(places.values(), key=lambda place: (-place.count, place.rank)):
        groups.setdefault((place.step, place.phase), []).append(place)
    missing = [rank for rank in range(world_size) if rank not in places]
    parts: list[str] = []
    for (step, phase), members in groups.items():
        is_front = not parts
        ranks = [place.rank for place in members]
        verb = ("waits" if len(ranks) == 1 else "wait") if is_front else ("is" if len(ranks) == 1 else "are")
        mark = "" if is_front else f"{_hosts(members)} <- look there"
        parts.append(f"{_ranks(ranks)} {verb} in {phase!r} of step {step}{mark}")
    if missing:
        parts.append(f"{_ranks(missing)} did not answer (stopped, dead or no longer running) <- look there")
    if len(parts) == 1:
        parts.append("none is behind: compare their stacks")
    return f"no progress for {seconds:.0f} s: {'; '.join(parts)}"


def _ranks(ranks: Iterable[int]) -> str:
    """Name ranks in ascending order, runs of them as first-last."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if ',' in names or '-' in names else ''} {names}"


def _hosts(members: Iterable[Place]) -> str:
    hosts = sorted({place.host for place in members})
    return f" on {', '.join(hosts)}" if len(hosts) <= HOSTS_NAMED else f" on {len(hosts)} hosts"
