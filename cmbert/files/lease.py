"""The lease of a directory: who may write there. It needs no locks of the kernel, and works on NFS and Lustre.

RUN/lease.000012.json says who owns the run: whoever has the highest number. It appears whole by link(), which one of
two claimants can do. Its number goes into the names of what is built aside. Its owner renews it: sets its time, again
and again. No clocks are compared: who wants to know whether an owner lives watches whether that time changes.
"""

import json
import logging
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cmbert.environment import number_in
from cmbert.errors import CheckpointError, LeaseLostError
from cmbert.files.json_types import parse_as
from cmbert.files.operations import doing, patiently, read_bytes
from cmbert.files.whole import in_utf8, write_bytes, write_json

RENEW_SECONDS = 5.0  # one small request to the file system; 448 ranks have one owner
WATCH_RENEWALS = 6  # half a minute; compiling and importing hold up the thread that renews for some seconds
LOOK_SECONDS = 0.5  # between two looks at a lease that is watched
NAME = re.compile(r"lease\.(\d+)\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """A process that trains, as its lease names it."""

    host: str
    machine: str
    """Boot of the machine and namespace of its process numbers: where this is the same, so is what `pid` means."""
    pid: int
    born: int
    """When the process began, clock ticks since the machine's boot: another process of this number has another one."""
    job: str
    """Slurm's job; "" without one."""
    life: int
    """How often Slurm has started the job again."""
    command: str
    started: str
    """For people; nobody compares clocks."""
    released: bool = False
    """Whether the run has ended in an orderly way."""

    def __str__(self) -> str:
        job = f"job {self.job}, life {self.life}" if self.job else "a run"
        return f"{job} on {self.host} (process {self.pid}, since {self.started}: `{self.command}`)"


def myself() -> Owner:
    """Return this process as an owner."""
    return Owner(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        born=_born(os.getpid()) or 0,
        job=os.environ.get("SLURM_JOB_ID", ""),
        life=number_in(os.environ, "SLURM_RESTART_COUNT"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _machine() -> str:
    """Return what names this machine's process numbers, or "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or a closed /proc: then an owner is watched, which takes longer
        return ""


def _born(pid: int) -> int | None:
    """Return when a process of this machine began, in clock ticks since its boot; None if there is none that runs."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[19])  # a zombie writes nothing any more


def _path(run: Path, number: int) -> Path:
    return run / f"lease.{number:06d}.json"


def _numbers(run: Path) -> list[int]:
    with doing("list", run):
        names = os.listdir(run)
    return sorted(int(found[1]) for name in names if (found := NAME.fullmatch(name)))


def _read(run: Path, number: int) -> Owner:
    path = _path(run, number)
    raw, remedy = read_bytes(path), "remove it if nothing trains there"
    return Owner(**parse_as(raw, Owner, f"{path}: not a lease", error=CheckpointError, remedy=remedy))


class Lease:
    """The right to write a run directory. Every rank has one and knows its number; rank 0 holds it."""

    def __init__(self, run: Path, number: int):
        self.run, self.number, self.path = run, number, _path(run, number)
        self.is_lost = False
        """What rank 0 knows without asking; `check` asks."""
        self.released = threading.Event()
        self.renewing: threading.Thread | None = None

    def hold(self) -> None:
        """Renew it from now on. Only rank 0."""
        self.renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.renewing.start()

    def _renew(self) -> None:
        has_failed = False
        while not self.released.wait(RENEW_SECONDS):
            try:
                os.utime(self.path)
                self.is_lost = _numbers(self.run)[-1] != self.number
            except (FileNotFoundError, IndexError):
                self.is_lost = True
            except OSError as error:  # if it lasts, another run may take over; the next save will see that
                if not has_failed:
                    logger.warning("%s: cannot be renewed (%s), trying on", self.path, error.strerror)
                has_failed = True
            if self.is_lost:
                return

    def check(self) -> None:
        """Raise LeaseLostError if another run owns the directory now. Only rank 0; before anything there changes."""
        try:  # NFS asks its server at an open, while a listing may be old; so a claimant removes the older file
            patiently(partial(read_bytes, self.path))
            is_there = True
        except FileNotFoundError:
            is_there = False
        newest = max([0, *patiently(partial(_numbers, self.run))])
        if newest == self.number and is_there:
            return
        self.is_lost = True
        now = f"{_read(self.run, newest)} has taken it over" if newest > self.number else "somebody removed its lease"
        raise LeaseLostError(f"{self.run}: {now}; this run ends here and leaves all of it as it is")

    def forget(self) -> None:
        """Remove it, where nothing is named by its number."""
        self.released.set()
        assert self.renewing is not None
        self.renewing.join()
        if not self.is_lost:
            self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let the next run begin at once. Its file stays, so that numbers only grow. Nothing on other ranks."""
        self.released.set()
        if self.renewing is None:
            return
        self.renewing.join()
        self.renewing = None
        try:
            self.check()
            owner = _read(self.run, self.number)
            write_json(self.path, {**asdict(owner), "released": True})
        except LeaseLostError:
            return
        except OSError as error:  # the next run watches it for a while
            logger.warning("%s: not released: %s", self.path, error)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Work in a directory, which is made if there is none, as its only process; leave no lease behind.

    Raises CheckpointError naming the owner if another process works there. For programs of one process that keep what
    is done; they do not ask again, so what stops renewals for half a minute lets another process of another machine in.
    """
    lease = Lease(directory, claim(directory, myself()))
    lease.hold()
    try:
        yield
    finally:
        lease.forget()


def is_lease(path: Path) -> bool:
    """Return whether a file is a lease, which a killed process may leave where it had just begun."""
    return NAME.fullmatch(path.name) is not None


def claim(run: Path, me: Owner) -> int:
    """Write a lease of the next number for `me` and return that. Raises CheckpointError if another run writes there."""
    with doing("create", run):
        run.mkdir(parents=True, exist_ok=True)
    while True:
        older = _numbers(run)
        number = older[-1] if older else 0
        if number:
            try:
                owner = _read(run, number)
            except FileNotFoundError:  # removed since, by a faster one
                continue
            why = _why_not_its_own(run, number, owner, me)
            if why is None:
                continue
            if not owner.released:
                logger.warning("%s: taken over from %s: %s", run, owner, why)
        if _link(run, number + 1, me):
            if _numbers(run)[-1] != number + 1:  # others came and went while this one looked at an older lease
                _path(run, number + 1).unlink()
                continue
            for old in older:
                _path(run, old).unlink(missing_ok=True)
            return number + 1


def _why_not_its_own(run: Path, number: int, owner: Owner, me: Owner) -> str | None:
    """Return why `owner` has no claim any more; None if another lease has appeared. Raises CheckpointError if it has.

    Watches for up to WATCH_RENEWALS renewals where nothing else tells.
    """
    if owner.released:
        return "released"
    is_here = bool(me.machine) and owner.machine == me.machine
    if is_here and _born(owner.pid) != owner.born:
        return "its process is gone"
    if owner.job and owner.job == me.job and owner.life < me.life:
        return f"this is life {me.life} of the same job"
    logger.info("%s: belongs to %s; watching for %.0f s whether it lives", run, owner, WATCH_RENEWALS * RENEW_SECONDS)
    until = time.monotonic() + WATCH_RENEWALS * RENEW_SECONDS
    first = _renewed(run, number)
    while (now := _renewed(run, number)) == first is not None:
        if time.monotonic() > until:
            return f"it was not renewed for {WATCH_RENEWALS * RENEW_SECONDS:.0f} s"
        time.sleep(LOOK_SECONDS)
    if now is None or _numbers(run)[-1:] != [number] or _read(run, number).released:
        return None
    raise CheckpointError(f"{run}: is written by {owner}; stop that, or choose another directory")


def _renewed(run: Path, number: int) -> int | None:
    """Return when a lease was renewed, in ns of the file server's clock; None if it is gone."""
    path = _path(run, number)
    try:
        with doing("open", path), open(path, "rb") as file:  # an open asks the server, a stat need not
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _link(run: Path, number: int, me: Owner) -> bool:
    """Let a whole lease of this number appear; return False if another claimant was faster."""
    path = _path(run, number)
    aside = run / f".lease.{me.host}.{me.pid}.{threading.get_ident()}"
    write_bytes(aside, in_utf8(json.dumps(asdict(me), ensure_ascii=False, indent=2)))
    try:
        with doing("link", path):
            os.link(aside, path)
    except FileExistsError:
        return os.stat(aside).st_nlink == 2  # an answer of NFS may be lost, and the repeated request find its own work
    finally:
        aside.unlink()
    return True
