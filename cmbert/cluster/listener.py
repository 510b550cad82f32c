"""What ranks tell each other about their end, through the store that they met in.

All is well: each rank waits there for one key of its own, and nothing is sent. A rank that gives the alarm, or fails,
sets the keys of all. A store that is gone tells that rank 0 is.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed
from torch.distributed import DistError, DistStoreError, Store
from torch.distributed.distributed_c10d import _get_default_store

from cmbert.cluster.distributed import Launch
from cmbert.cluster.ending import EXIT_FAILED, OTHER_RANK, claim, leave
from cmbert.errors import first_line

KEY = "cmbert_watchdog"
STOP, ALARM, FAILED = "stop", "alarm", "failed: "  # what a rank's key may say
LISTEN = timedelta(days=1)  # of one wait for the key; torch hands milliseconds to poll as a C int (24 days)
TELL_SECONDS = 3.0  # to set the keys of 448 ranks takes well below one
PARTING_SECONDS = 1.0  # for all to read the last key, so that nobody's peers or store leave much earlier
STORE_GONE_SECONDS = 5.0  # at a good end rank 0 may leave first; this rank then has so long to get there, too

logger = logging.getLogger(__name__)


class Listener:
    """Ends this process when another rank has failed; calls `alarm` when another gives the alarm."""

    def __init__(self, launch: Launch, alarm: Callable[[], None]):
        self.launch, self.alarm = launch, alarm
        self.store: Store | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to listen, if there is anybody else; after the ranks have met."""
        if self._thread is None and self.launch.world_size > 1 and torch.distributed.is_initialized():
            self.store = _get_default_store()
            self._stopped.clear()
            self._thread = background(self._listen, self.store)

    def stop(self, seconds: float) -> None:
        """Listen no more; waits up to so long for the thread. Before the ranks part."""
        if self._thread is None or self.store is None:
            return
        self._stopped.set()  # a listener that wakes in a dying interpreter would abort it
        background(quietly, self.store.set, key("wake", self.launch.rank), STOP).join(seconds)
        self._thread.join(seconds)
        self._thread = self.store = None

    def tell_failure(self, text: str) -> None:
        """Have all other ranks end, because this one will. Takes TELL_SECONDS and PARTING_SECONDS at most."""
        if self._thread is None or self.store is None:
            return
        self._stopped.set()
        background(quietly, self._tell_failure, self.store, text).join(TELL_SECONDS)
        if self.launch.rank == 0:  # the store is with it
            time.sleep(PARTING_SECONDS)

    def _tell_failure(self, store: Store, text: str) -> None:
        client = connection_to(store)
        if client.add(key("failures"), 1) > 1:  # the others know already
            return
        word = f"{FAILED}rank {self.launch.rank} on {socket.gethostname()}: {text}"
        for rank in range(self.launch.world_size):
            if rank != self.launch.rank:
                client.set(key("wake", rank), word)

    def _listen(self, store: Store) -> None:
        """Wait for a word; on a connection of its own, as a wait holds it."""
        own = key("wake", self.launch.rank)
        try:
            client = connection_to(store)
            while not self._stopped.is_set():
                try:
                    client.wait([own], LISTEN)
                except DistStoreError:  # a day without a word
                    continue
                word = client.get(own).decode()
                if word == STOP:
                    client.delete_key(own)  # another listener of this process group may follow
                elif word == ALARM:
                    self.alarm()
                elif not self._stopped.is_set():
                    self._end(word.removeprefix(FAILED))
                return
        except DistError as error:
            if not self._stopped.wait(STORE_GONE_SECONDS):
                self._end(f"rank 0, at {self.launch.address}: the ranks' store is gone ({first_line(error)})")

    def _end(self, text: str) -> None:
        if not claim():
            return
        print(f"cmbert (rank {self.launch.rank}): error: {OTHER_RANK}: {text}", file=sys.stderr, flush=True)
        time.sleep(PARTING_SECONDS)  # some launchers take the first exit code for the job's: it should be the other's
        leave(EXIT_FAILED)


def key(name: str, rank: int | None = None) -> str:
    """Return a key of the store."""
    return f"{KEY}/{name}" if rank is None else f"{KEY}/{name}/{rank}"


def background(work: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start `work` in a daemon thread, so that whoever needs it can stop waiting for it."""
    thread = threading.Thread(target=work, args=arguments, name=KEY, daemon=True)
    thread.start()
    return thread


def connection_to(store: Store) -> Store:
    """Return another connection to the same store: one that a main thread is stuck in serves nobody else."""
    return store.clone()  # type: ignore[attr-defined]  # there since torch 2.9, but not in its stub


def quietly(work: Callable[..., object], *arguments: object) -> None:
    """Do what another rank should learn; that it cannot, because the store is gone, it notices itself."""
    try:
        work(*arguments)
    except DistError as error:
        logger.debug("listener: %s", error)
