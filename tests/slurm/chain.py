"""The chain of submit_all.sh from raw text to verified shards: submitted, hurried on, submitted again."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.cluster import wait_until
from tests.slurm.desk import Desk

ARRAY_JOBS = 2
LATER = {"cmbert-stage1", "cmbert-stage2", "cmbert-export", "cmbert-evaluate"}
MOST_SECONDS = 3600  # of a chain


class Chain:
    """One chain of a desk; stage 1 begins some other day, so that it ends where training would begin."""

    def __init__(self, desk: Desk):
        self.desk, self.slurm = desk, desk.slurm
        self.num_submitted = 0
        """How often submit_all.sh has run."""

    def submit(self) -> None:
        """Run submit_all.sh."""
        self.slurm.call("slurm/submit_all.sh", "recipes/tiny", "text", str(ARRAY_JOBS), directory=self.desk.directory)
        self.num_submitted += 1

    def jobs(self, *options: str) -> list[list[str]]:
        """Return number, name, state and reason of the jobs in the queue, arrays task by task."""
        said = self.slurm.call("squeue", "-h", "-r", "-o", "%i|%j|%T|%r", *options)
        return [line.split("|") for line in said.splitlines()]

    def running(self) -> list[str]:
        """Return the numbers of the jobs that run."""
        return [number for number, *_ in self.jobs("-t", "RUNNING")]

    def hurry(self) -> None:
        """Let what was requeued begin at once, and what Slurm has held after a failed launch."""
        for number, name, state, reason in self.jobs():
            if name in LATER or state != "PENDING":
                continue
            if reason == "BeginTime" and self.slurm.has_said_all():
                self.slurm.call("scontrol", "update", f"jobid={number}", "StartTime=now+1", code=None)
            elif "held" in reason.lower():
                self.slurm.call("scontrol", "release", number, code=None)

    def cancel(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self.slurm.call("scancel", "--user", str(os.getuid()), code=None)
        wait_until(lambda: not self.jobs(), "an empty queue")

    def run(self, meanwhile: Callable[["Chain"], object]) -> None:
        """Submit until all shards are verified, `meanwhile` doing again and again what it likes."""
        end = time.monotonic() + MOST_SECONDS
        self.submit()
        while True:
            assert time.monotonic() < end, self.jobs()
            self.hurry()
            numbers = {name: number for number, name, *_ in self.jobs()}
            stage1 = numbers.get("cmbert-stage1")
            if stage1 is None:  # Slurm has cancelled it: something before it has failed
                self.submit()
            elif numbers.keys() <= LATER and self.slurm.show(stage1)["Dependency"] == "(null)":
                break
            meanwhile(self)
            time.sleep(0.2)
        self.cancel()

    def pass_of(self, name: str) -> str:
        """Return the pass of `clean` that a job of this name is at, "" if it is none or has not begun."""
        verb, _, corpus = name.removeprefix("cmbert-").partition("-")
        folder = self.desk.directory / "text" / ("heldout" if verb.startswith("holdout") else "")
        found = folder.glob(f".{corpus}.clean/*/done *") if verb.startswith(("clean", "holdout")) else ()
        return max(found, key=_time_of, default=Path()).name.removeprefix("done ")


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
