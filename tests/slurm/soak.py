"""An hour on a private Slurm with random faults, loader processes included: every run must equal the unbroken one.

    python -m tests.slurm.soak --minutes 60

Not part of the suite. A life ends in time if all its processes, loader processes and their helpers among them, are gone
within the bound of its fault. docs/reliability.md has the last result.
"""

import argparse
import random
import re
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from cmbert.checkpoint.files import CHECKPOINTS, list_checkpoints
from cmbert.checkpoint.state import read_state
from cmbert.runs.metrics import read_events
from tests.integration.launching import settings, trace, train
from tests.integration.soak import make_recipe
from tests.processes import left_of
from tests.slurm.cluster import WAIT_SECONDS, Cluster, wait_until
from tests.slurm.desk import DONE, ONE_NODE, TWO_NODES, Desk
from tests.slurm.faults import FAULTS, SETTINGS, Fault, Life, lose_daemon, lose_node

SIZES = {1: (*ONE_NODE, "--ntasks-per-node=2"), 2: TWO_NODES}  # two ranks each
OPTIONS = ("--time=60", "--signal=USR1@90", "--export=ALL,CMBERT_MAX_LIVES=100000,CMBERT_MAX_RESTARTS=100000")


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
