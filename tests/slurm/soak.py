"""An hour on a private Slurm with random faults, loader processes included: every run must equal the unbroken one.

    python -m tests.slurm.soak --minutes 60

Not part of the suite. A life ends in time if all its processes, loader processes and their helpers among them, are gone
within the bound of its fault. docs/reliability.md has the last result.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cmbert.checkpoint.files import CHECKPOINTS, list_checkpoints
from cmbert.checkpoint.state import read_state
from cmbert.runs.metrics import read_events
from tests.integration.launching import settings, trace, train
from tests.integration.soak import make_recipe
from tests.processes import (
    SERVER,
    TRACKER,
    Process,
    find,
    find_parent,
    fork_servers,
    is_alive,
    left_of,
    loaders,
    resource_trackers,
)
from tests.slurm.cluster import WAIT_SECONDS, Cluster, processes, wait_until, works_in
from tests.slurm.desk import DONE, ONE_NODE, TWO_NODES, Desk

HANG_SECONDS = 20  # a busy machine takes ten to start loader processes
SETTINGS = (
    "train.total_tokens=307200",  # 600 steps: so long that a stray life is not done before the next one begins
    "train.checkpoint_every_steps=50",
    "train.rolling_every_steps=10",
    "data.num_workers=2",
    f"guards.hang_seconds={HANG_SECONDS}",
)
SIZES = {1: (*ONE_NODE, "--ntasks-per-node=2"), 2: TWO_NODES}  # two ranks each
OPTIONS = ("--time=60", "--signal=USR1@90", "--export=ALL,CMBERT_MAX_LIVES=100000,CMBERT_MAX_RESTARTS=100000")
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


class Soak:
    """Runs one after another, each struck until it is done or the time is up."""

    def __init__(self, desk: Desk, choice: random.Random, end: float):
        self.desk, self.choice, self.end = desk, choice, end
        self.run = desk.directory / "run"
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        """From each fault, by name and moment, to the end of the life's last process; 0 where the life went on."""
        self.num_runs = self.num_lives = 0
        self.late: list[str] = []
        """What took longer than its bound."""

    def one_run(self) -> None:
        """Train a run to its end. Raises AssertionError or TimeoutError if anything does not hold."""
        desk, num_nodes = self.desk, self.choice.choice((1, 2))
        shutil.rmtree(self.run, ignore_errors=True)
        job = desk.submit("stage1.sh", "recipe.toml", *settings(*SETTINGS), options=(*SIZES[num_nodes], *OPTIONS))
        saved = [0]  # newest checkpoint at each strike, steps
        while time.monotonic() < self.end and self.one_fault(job, num_nodes, saved):
            pass
        assert desk.end(job) == "0:0", desk.output(job)
        last = desk.output(job).strip().splitlines()[-1]
        assert last.endswith(": finished"), last
        wait_until(lambda: not Life(desk, job).look(), "no process left")
        lives = [event["step"] for event in read_events(self.run) if event["kind"] == "life"]
        assert all(step >= least for step, least in zip(lives, saved, strict=False)), (lives, saved)
        self.num_runs, self.num_lives = self.num_runs + 1, self.num_lives + len(lives)

    def one_fault(self, job: str, num_nodes: int, saved: list[int]) -> bool:
        """Strike a life at a random moment and see it end; return False if the job was done before."""
        desk, life = self.desk, Life(self.desk, job)
        is_early = self.choice.random() < 0.25
        fault = self.choice.choice([f for f in FAULTS if num_nodes in f.num_nodes and (f.at_start or not is_early)])
        begun = self.size()
        ready = life.ranks if is_early else lambda: self.size() > begun
        desk.wait(job, lambda: ready() or desk.slurm.state(job) in DONE, f"a moment for {fault.name}")
        time.sleep(self.choice.uniform(0, 2))
        if len(life.ranks()) < 2 or not fault.needs(life):
            return desk.slurm.state(job) not in DONE
        restarts, newest = desk.restarts[job], self.newest()
        said = len(desk.output(job))
        struck = time.monotonic()
        try:
            fault.strike(life, self.choice)
        except (ValueError, IndexError, FileNotFoundError):  # nobody is there to strike: it has just ended
            return True
        key = (fault.name, "while starting" if is_early else "in steps")
        if not fault.ends:
            self.note(key, 0.0)
            return True
        if fault.strike is not lose_daemon:
            self.note(key, self.end_of(life, struck, fault))
        desk.wait(job, lambda: self.restarts(job) > restarts or desk.slurm.state(job) in DONE, f"requeue: {fault.name}")
        if desk.slurm.state(job) in DONE:  # it was done in time
            return False
        assert re.search(fault.says, desk.output(job)[said:]), (fault.name, desk.output(job)[said:])
        saved.append(newest)
        if fault.strike is lose_node:
            desk.slurm.revive()
            # slurmctld 22.05 crashes (address 0) when srun asks for a job that begins while a lost node returns
            wait_until(desk.slurm.is_idle, "both nodes idle")
        desk.next_life(job)
        if fault.strike is lose_daemon:  # the older life learns of the newer at its next save
            self.note(key, self.end_of(life, time.monotonic(), fault))
            desk.slurm.revive()
        return True

    def end_of(self, life: Life, since: float, fault: Fault) -> float:
        """Wait until no process of a life is left; return the seconds."""
        left = left_of(list(life.seen), WAIT_SECONDS)
        states = [(one.pid, Path(f"/proc/{one.pid}/stat").read_text().split()[2], one.command[:200]) for one in left]
        assert not left, (fault.name, states, self.desk.output(life.job)[-3000:])
        seconds = time.monotonic() - since
        if seconds > fault.seconds:
            self.late.append(f"{fault.name}: {seconds:.1f} s\n{self.desk.output(life.job)[-3000:]}")
        return seconds

    def note(self, key: tuple[str, str], seconds: float) -> None:
        self.seconds[key].append(seconds)
        print(f"run {self.num_runs + 1}: {key[0]}, {key[1]}: {seconds:.1f} s", flush=True)

    def restarts(self, job: str) -> int:
        return int(self.desk.slurm.show(job)["Restarts"])

    def size(self) -> int:
        """Return how much of the run's steps is written down, bytes."""
        metrics = self.run / "metrics.jsonl"
        return metrics.stat().st_size if metrics.is_file() else 0

    def newest(self) -> int:
        """Return the steps of the run's newest checkpoint; 0 if it has none."""
        found = list_checkpoints(self.run / CHECKPOINTS)
        return read_state(found[-1]).step if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cluster = Cluster()
    folder = Path(tempfile.mkdtemp(prefix="cmbert-soak-"))  # kept if anything does not hold
    recipe = make_recipe(folder)
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    train(recipe, *settings(*SETTINGS, f"run_directory={folder}/unbroken"), ranks=2)
    expected = trace(folder / "unbroken")
    try:
        cluster.start()
        started = time.monotonic()
        soak = Soak(Desk(cluster, folder), random.Random(options.seed), started + 60 * options.minutes)
        while time.monotonic() < soak.end:
            soak.one_run()
            assert trace(soak.run) == expected, "the run is not the unbroken one"
    finally:
        cluster.clear()
        cluster.stop()
    shutil.rmtree(folder)
    print(*soak.late, sep="\n")
    print("| fault | moment | times | seconds to the end of all processes: median | most |")
    for (fault, moment), seconds in sorted(soak.seconds.items()):
        print(f"| {fault} | {moment} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    print(
        f"{sum(map(len, soak.seconds.values()))} faults in {soak.num_lives} lives of {soak.num_runs} runs of "
        f"{len(expected)} steps on 2 ranks, {len(soak.late)} beyond their bounds: every trace equal bit for bit, "
        f"slurmctld crashed {cluster.num_crashes} times by itself ({(time.monotonic() - started) / 60:.0f} min)"
    )


if __name__ == "__main__":
    main()
