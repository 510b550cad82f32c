"""Faults that a life of a job meets in the soak, and how each must end."""

import contextlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.integration.launching import settings
from tests.processes import (
    SERVER,
    TRACKER,
    Process,
    find,
    find_parent,
    fork_servers,
    is_alive,
    loaders,
    resource_trackers,
)
from tests.slurm.cluster import processes, wait_until, works_in
from tests.slurm.desk import Desk

HANG_SECONDS = 20  # a busy machine takes ten to start loader processes
SETTINGS = (
    "train.total_tokens=307200",  # 600 steps: so long that a stray life is not done before the next one begins
    "train.checkpoint_every_steps=50",
    "train.ephemeral_every_steps=10",
    "data.num_workers=2",
    f"guards.hang_seconds={HANG_SECONDS}",
)
END_SECONDS = 10.0  # from a fault to the end of every process of the life
# Likewise if only the watchdog can tell: its limit, half a minute for a store that is with the stopped rank, and srun's
# eight seconds.
HUNG_SECONDS = HANG_SECONDS + 45.0
# Likewise of a life whose slurmd is gone, from the next life's start: its preflight and start come before the
# older life's next save, which tells it.
STRAY_SECONDS = 60.0

OF_A_LIFE = rf"-m cmbert train|{SERVER}|{TRACKER}"  # in command lines


@dataclass
class Life:
    """One life of a job, as far as it can be seen from outside."""

    desk: Desk
    job: str
    seen: set[Process] = field(default_factory=set)

    def look(self) -> list[Process]:
        """Return its processes that live: ranks and what they have started."""
        here = [find(pid) for pid in processes() if works_in(pid, self.desk.directory)]
        found = [
            one for one, _ in filter(None, here) if re.search(OF_A_LIFE, one.command) and "srun" not in one.command
        ]
        self.seen |= set(found)
        return found

    def ranks(self) -> list[int]:
        return [one.pid for one in self.look() if "-m cmbert train" in one.command]

    def helpers(self, kind: Callable[[list[Process]], list[Process]]) -> list[int]:
        return [one.pid for one in kind(self.look())]

    def servers(self) -> list[int]:
        """Return the fork servers. A loader process whose server was killed looks like one; its parent is no rank."""
        ranks = self.ranks()
        return [one.pid for one in fork_servers(self.look()) if find_parent(one) in ranks]

    def node_of(self, rank: int) -> str:
        return re.findall(rb"SLURMD_NODENAME=(\w+)", Path(f"/proc/{rank}/environ").read_bytes())[0].decode()


Strike = Callable[[Life, random.Random], object]


@dataclass(frozen=True)
class Fault:
    """What is done to a life, and how it must end."""

    name: str
    strike: Strike
    says: str
    """Pattern of the job's last line about the life; empty if the life may go on or ends without a word."""
    seconds: float = END_SECONDS
    ends: bool = True
    at_start: bool = False
    """Whether it may come in the first seconds, before the loader processes are there."""
    num_nodes: Sequence[int] = (1, 2)
    needs: Callable[[Life], object] = Life.ranks


def kill(pids: Sequence[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def one_of(find: Callable[[Life], list[int]], number: int = signal.SIGKILL) -> Strike:
    """Return what sends a signal to one process of a kind."""
    return lambda life, choice: kill(choice.sample(find(life), 1), number)


def cancel(*signals: str) -> Strike:
    """Return what sends signals to all processes of the job's steps, as Slurm does."""

    def strike(life: Life, _: random.Random) -> None:
        for name in signals:
            life.desk.slurm.call("scancel", f"--signal={name}", life.job, code=None)

    return strike


def requeue(life: Life, _: random.Random) -> None:
    life.desk.slurm.call("scontrol", "requeue", life.job, code=None)


def lose_node(life: Life, choice: random.Random) -> None:
    life.desk.slurm.lose_node(life.node_of(choice.choice(life.ranks())))


def lose_daemon(life: Life, _: random.Random) -> None:
    """Kill a node's slurmd: its ranks go on while Slurm starts the job again on the other node."""
    node, slurm = life.node_of(life.ranks()[0]), life.desk.slurm
    pid = int((slurm.root / f"slurmd.{node}.pid").read_text(encoding="utf-8"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), f"the end of {node}'s slurmd")
    slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")


def start_again(life: Life, _: random.Random) -> None:
    """The same training by hand, on the login node: refused, and the run goes on."""
    command = ["./python", "-m", "cmbert", "train", "recipe.toml", *settings(*SETTINGS)]
    done = subprocess.run(
        command, cwd=life.desk.directory, capture_output=True, text=True, check=False, env=life.desk.slurm.environment
    )
    if "finished" in done.stdout:  # the first has taken the last steps meanwhile, and left
        return
    assert done.returncode == 2, done
    assert f"job {life.job}" in done.stderr, done.stderr


STOPPED, REQUEUED = "were asked to stop; requeued", "(?<!asked to stop); requeued"
LOADERS, TRACKERS = (partial(Life.helpers, kind=kind) for kind in (loaders, resource_trackers))
FAULTS = (
    Fault("kill -9 of a rank", one_of(Life.ranks), REQUEUED, at_start=True),
    Fault("kill -9 of all ranks", lambda life, _: kill(life.ranks()), REQUEUED, at_start=True),
    Fault("kill -9 of a loader process", one_of(LOADERS), REQUEUED, needs=LOADERS),
    Fault("kill -9 of a fork server", one_of(Life.servers), "", ends=False, needs=Life.servers),
    Fault("kill -9 of a resource tracker", one_of(TRACKERS), "", ends=False, needs=TRACKERS),
    Fault("TERM to a rank", one_of(Life.ranks, signal.SIGTERM), STOPPED),
    Fault("USR1 to all processes", cancel("USR1"), STOPPED, at_start=True),
    Fault("USR1 three times to all", cancel("USR1", "USR1", "USR1"), STOPPED, at_start=True),
    Fault("TERM, then INT to all", cancel("TERM", "INT"), STOPPED, at_start=True),
    Fault("SIGSTOP of a rank", one_of(Life.ranks, signal.SIGSTOP), REQUEUED, HUNG_SECONDS, needs=LOADERS),
    Fault("scontrol requeue", requeue, "outside", at_start=True),
    Fault("a node is lost", lose_node, "", at_start=True),
    Fault("a slurmd is lost, its ranks go on", lose_daemon, "", STRAY_SECONDS, num_nodes=(1,)),
    Fault("the same training by hand", start_again, "", ends=False),
)
