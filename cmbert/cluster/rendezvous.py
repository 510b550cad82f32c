"""How ranks meet before anything waits inside a library: who is missing is said, a signal or a bound ends the wait."""

import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import DistError, DistNetworkError, HashStore, PrefixStore, Store, TCPStore

from cmbert.cluster.distributed import Launch
from cmbert.errors import ConfigError, TransientError, first_line

JOIN_SECONDS = 300.0  # as the preflight; imports on a busy file system take minutes at worst
SAY_SECONDS, LONGEST_SILENCE_SECONDS = 10.0, 80.0  # the first word about who is missing; then after twice as long
POLL_SECONDS = 0.2  # 448 ranks ask 2,240 times a second then, which takes the store 2 % of a core
CONNECT_SECONDS = 1.0  # of one attempt; a host that does not answer at all holds up a signal for so long
ANSWER_SECONDS = 60.0  # of one look into a store that is there
NAMED_RANKS = 8  # more make no line that one can read
PARTING_SECONDS = 3.0  # for the others to read that all are to stop

JOINED, STOP, OUTCOME, READ = "joined", "stop", "outcome", "read"  # keys
MET, STOPPED = "met", "stopped"  # outcomes

logger = logging.getLogger(__name__)


def meet(launch: Launch, is_asked_to_stop: Callable[[], bool]) -> Store | None:
    """Wait until every rank is there; return the store they met in, or None if one was asked to stop before.

    Raises TransientError if ranks are missing after JOIN_SECONDS, ConfigError if rank 0 cannot listen where it must.
    """
    if launch.world_size == 1:
        return None if is_asked_to_stop() else HashStore()
    meeting = _Meeting(launch, is_asked_to_stop)
    store = meeting.open_store()
    if store is None:
        return None
    try:
        outcome = meeting.lead(store) if launch.rank == 0 else meeting.follow(store)
    except DistError as error:
        if is_asked_to_stop():  # rank 0 as well, which does not wait for those that it has not counted
            return None
        raise TransientError(
            f"{meeting.me}: {meeting.place} has ended before all ranks were there ({first_line(error)})"
        ) from None
    return store if outcome == MET else None


class _Meeting:
    """One rank's way into the meeting."""

    def __init__(self, launch: Launch, is_asked_to_stop: Callable[[], bool]):
        self.launch, self.is_asked_to_stop = launch, is_asked_to_stop
        self.me = f"rank {launch.rank} on {socket.gethostname()}"
        self.place = f"rank 0 at {launch.address}:{launch.port}"
        self.began = time.monotonic()
        self.next_word = SAY_SECONDS

    def open_store(self) -> Store | None:
        """Return the store at rank 0's address, made or reached; None if asked to stop before it answers."""
        agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process listens
        is_host = self.launch.rank == 0 and not agent_has_it
        while not is_host and not self._answers():
            if self.is_asked_to_stop():
                return None
            self.keep_waiting(lambda: f"for {self.place} to answer; is it started, and can {self.me} reach it?")
            time.sleep(POLL_SECONDS)
        try:
            store = TCPStore(
                self.launch.address, self.launch.port, is_master=is_host, wait_for_workers=False,
                timeout=timedelta(seconds=ANSWER_SECONDS),
            )  # fmt: skip
        except DistNetworkError as error:
            if not is_host:
                if self.is_asked_to_stop():
                    return None
                raise TransientError(f"{self.me}: {self.place}: {first_line(error)}") from None
            raise ConfigError(
                f"{self.me}: cannot listen on port {self.launch.port} ({first_line(error)}); end the process that has "
                "it, or set MASTER_PORT to another for all ranks"
            ) from None
        # torchrun keeps its store when it starts the ranks again
        return PrefixStore(f"cmbert/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _answers(self) -> bool:
        """Return whether something listens at rank 0's address; torch's own attempts are long, and loud."""
        try:
            socket.create_connection((self.launch.address, self.launch.port), CONNECT_SECONDS).close()
        except socket.gaierror as error:
            raise ConfigError(f"{self.me}: {self.launch.address}: {error.strerror}; set MASTER_ADDR") from None
        except OSError:  # not yet
            return False
        return True

    def lead(self, store: Store) -> str:
        """Rank 0: wait for all, then let them go; return MET or STOPPED, which all others get, too."""
        store.add(JOINED, 1)
        while True:
            if self.is_asked_to_stop() or store.check([STOP]):
                return self.dismiss(store)
            if store.add(JOINED, 0) == self.launch.world_size:
                break
            self.keep_waiting(lambda: self._missing(store))
            time.sleep(POLL_SECONDS)
        store.set(OUTCOME, MET)
        return MET

    def dismiss(self, store: Store) -> str:
        """Rank 0: tell those who are there that one was asked to stop; the store ends with this process."""
        store.set(OUTCOME, STOPPED)
        end = time.monotonic() + PARTING_SECONDS
        while store.add(READ, 0) < store.add(JOINED, 0) - 1 and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return STOPPED

    def follow(self, store: Store) -> str:
        """Any other rank: be counted, and learn the outcome from rank 0."""
        store.set(f"{JOINED}/{self.launch.rank}", self.me)
        store.add(JOINED, 1)
        stop_by: float | None = None
        while not store.check([OUTCOME]):
            if self.is_asked_to_stop() and stop_by is None:
                store.set(STOP, "")  # and rank 0 decides: it may let the ranks go at this moment
                stop_by = time.monotonic() + PARTING_SECONDS
            if stop_by is not None and time.monotonic() > stop_by:  # rank 0 is not there
                return STOPPED
            if self.seconds() > JOIN_SECONDS + SAY_SECONDS:  # rank 0 says who is missing
                raise TransientError(f"{self.me}: {self.place} has not let the ranks go in {self.seconds():.0f} s")
            time.sleep(POLL_SECONDS)
        outcome = store.get(OUTCOME).decode()
        store.add(READ, 1)
        return outcome

    def seconds(self) -> float:
        """Return how long this rank has waited."""
        return time.monotonic() - self.began

    def keep_waiting(self, what: Callable[[], str]) -> None:
        """Say now and then what is waited for. Raises TransientError after JOIN_SECONDS."""
        if self.seconds() > JOIN_SECONDS:
            raise TransientError(f"{self.me}: waited {self.seconds():.0f} s {what()}")
        if self.seconds() > self.next_word:
            self.next_word += min(self.next_word, LONGEST_SILENCE_SECONDS)
            if self.launch.local_rank == 0:  # one rank of a node says it, at a level that every rank lets through
                logger.error("%s: waiting %s", self.me, what())

    def _missing(self, store: Store) -> str:
        """Name the ranks that are not there."""
        world = self.launch.world_size
        missing = [rank for rank in range(1, world) if not store.check([f"{JOINED}/{rank}"])]
        names = ", ".join(map(str, missing[:NAMED_RANKS])) + (", ..." if len(missing) > NAMED_RANKS else "")
        ranks = "rank" if len(missing) == 1 else "ranks"
        return (
            f"for {len(missing)} of {world} ranks: {ranks} {names}; it listens at {self.launch.address}:"
            f"{self.launch.port}. Were they started, and with that address?"
        )
