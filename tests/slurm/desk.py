"""A user's folder: our scripts, their env.sh, a recipe; and a Python that breaks as it is told, life by life."""

import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]
LIFE_SECONDS = 90  # most that a life of a few steps may take on a loaded machine
SMALL = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")  # what the headers ask for is large
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

ENVIRONMENT = """CMBERT_PYTHON={desk}/python
CMBERT_SRUN_OPTIONS=()
CMBERT_PREFIX=()
CMBERT_STAGE_OPTIONS=(--nodes=2 {small})
CMBERT_EVALUATE_OPTIONS=(--gpus-per-node=0 --cpus-per-task=1)
CMBERT_CPU_OPTIONS=(--cpus-per-task=1)
"""
# The line of `faults` for this life breaks the trainer, the line of `unfit` for this node its preflight.
PYTHON = """#!/bin/bash
export PYTHONPATH={root} OMP_NUM_THREADS=1
fault=$(sed -n "$((${{SLURM_RESTART_COUNT:-0}} + 1))p" {desk}/faults 2>/dev/null)
if [[ $* == *"-m cmbert train"* && $fault == ulimit* ]]; then
    eval "$fault"
elif [[ $* == *"-m cmbert train"* && -n $fault && $fault != - ]]; then
    FAULT=$fault exec {python} -u {root}/tests/integration/faulty_train.py "${{@:5}}"
fi
if [[ $* == *"-m cmbert preflight"* ]] && unfit=$(grep "^$SLURMD_NODENAME " {desk}/unfit 2>/dev/null); then
    eval "${{unfit#* }}"
fi
exec {python} "$@"
"""


class Desk:
    """Where jobs are submitted from."""

    def __init__(self, slurm: Cluster, directory: Path):
        self.slurm, self.directory = slurm, directory
        scripts = directory / "slurm"
        shutil.copytree(ROOT / "slurm", scripts)
        (scripts / "env.sh").write_text(ENVIRONMENT.format(desk=directory, small=" ".join(SMALL)), encoding="utf-8")
        python = directory / "python"
        python.write_text(PYTHON.format(root=ROOT, desk=directory, python=sys.executable), encoding="utf-8")
        python.chmod(0o755)

    def break_lives(self, *faults: str) -> None:
        """faults: kind:step:rank of faulty_train.py, or a ulimit, for each life of a job; "-" for none."""
        (self.directory / "faults").write_text("".join(f"{fault}\n" for fault in faults), encoding="utf-8")

    def break_node(self, node: str, command: str) -> None:
        """command: what the shell does on `node` before a preflight."""
        (self.directory / "unfit").write_text(f"{node} {command}\n", encoding="utf-8")

    def submit(self, script: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """Return the job's number."""
        command = ["sbatch", "--parsable", *options, f"slurm/{script}", *arguments]
        return self.slurm.call(*command, directory=self.directory).strip()

    def output(self, job: str) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in self.directory.glob(f"slurm-*-{job}.out"))

    def wait_for_text(self, job: str, pattern: str) -> None:
        """Wait until the job's output has `pattern`."""
        try:
            wait_until(lambda: re.search(pattern, self.output(job)), LIFE_SECONDS, pattern)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.output(job)}") from error

    def wait_for_state(self, job: str, *states: str) -> None:
        try:
            wait_until(lambda: self.slurm.state(job) in states, LIFE_SECONDS, f"{states}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}, but {self.slurm.show(job)}\n{self.output(job)}") from error

    def next_life(self, job: str) -> None:
        """Start a requeued job at once; Slurm would wait two minutes."""
        lives = self.slurm.show(job)["Restarts"]

        def has_begun() -> bool:
            shown = self.slurm.show(job)
            if shown["JobState"] == "PENDING" and shown["Reason"] == "BeginTime":
                time.sleep(2)  # slurmd refuses a job whose last life it revoked in the same second
                self.slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")
            return shown["JobState"] not in ("PENDING", "COMPLETING")

        wait_until(has_begun, LIFE_SECONDS, f"the start of life {lives} of job {job}")

    def end(self, job: str) -> str:
        """Wait for the job's end; return its exit code, code:signal."""
        self.wait_for_state(job, *DONE)
        return self.slurm.show(job)["ExitCode"]
