"""A user's folder: our scripts, their env.sh, a recipe; and a Python that breaks as it is told, life by life."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]
SMALL = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")  # what the headers ask for is large
ONE_NODE, TWO_NODES = ("--nodes=1", *SMALL), ("--nodes=2", *SMALL)
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

ENVIRONMENT = """CMBERT_PYTHON={desk}/python
CMBERT_SRUN_OPTIONS=()
CMBERT_PREFIX=()
CMBERT_STAGE_OPTIONS=(--nodes=2 {small})
CMBERT_EVALUATE_OPTIONS=(--gpus-per-node=0 --cpus-per-task=1)
CMBERT_CPU_OPTIONS=(--cpus-per-task=1)
"""
# The line of `faults` for this life breaks the trainer, the line of `unfit` for this node its preflight; `killed` has
# the one task of an array whose first life is killed, as the kernel does it when memory is short.
PYTHON = """#!/bin/bash
export PYTHONPATH={root} OMP_NUM_THREADS=1
fault=$(sed -n "$((${{SLURM_RESTART_COUNT:-0}} + 1))p" {desk}/faults 2>/dev/null)
if [[ $* == *"-m cmbert train"* && $fault == ulimit* ]]; then
    eval "$fault"
elif [[ $* == *"-m cmbert train"* && $fault == leave ]]; then
    exit 0
elif [[ $* == *"-m cmbert train"* && -n $fault && $fault != - ]]; then
    FAULT=$fault exec {python} -u {root}/tests/integration/faulty_train.py "${{@:5}}"
fi
if [[ ${{SLURM_RESTART_COUNT:-0}} == 0 && ${{SLURM_ARRAY_TASK_ID:--}} == $(cat {desk}/killed 2>/dev/null) ]]; then
    kill -KILL $$
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
        self.restarts: Counter[str] = Counter()  # of each job, as far as the test has followed it
        scripts = directory / "slurm"
        shutil.copytree(ROOT / "slurm", scripts)
        (scripts / "env.sh").write_text(ENVIRONMENT.format(desk=directory, small=" ".join(SMALL)), encoding="utf-8")
        python = directory / "python"
        python.write_text(PYTHON.format(root=ROOT, desk=directory, python=sys.executable), encoding="utf-8")
        python.chmod(0o755)

    def break_lives(self, *faults: str) -> None:
        """faults: kind:step:rank of faulty_train.py, a ulimit, or "leave" (end with 0), for each life; "-" for none."""
        (self.directory / "faults").write_text("".join(f"{fault}\n" for fault in faults), encoding="utf-8")

    def break_node(self, node: str, command: str) -> None:
        """command: what the shell does on `node` before a preflight."""
        (self.directory / "unfit").write_text(f"{node} {command}\n", encoding="utf-8")

    def break_task(self, number: int) -> None:
        """number: of the task of an array that is killed in its first life."""
        (self.directory / "killed").write_text(f"{number}\n", encoding="utf-8")

    def submit(self, script: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """Return the job's number."""
        command = ["sbatch", "--parsable", *options, f"slurm/{script}", *arguments]
        return self.slurm.call(*command, directory=self.directory).strip()

    def output(self, job: str) -> str:
        """What a job has said in all its lives, oldest first."""
        logs = self.directory / "slurm" / "logs"
        found = sorted(logs.glob(f"*-{job}.life*.out"), key=lambda path: int(path.stem.rpartition("life")[2]))
        return "".join(path.read_text(encoding="utf-8") for path in [*found, *logs.glob(f"*-{job}.out")])

    def newest_checkpoint(self) -> str:
        """The name of the run's newest whole checkpoint."""
        return (self.directory / "run" / "checkpoints" / "latest").read_text(encoding="utf-8").strip()

    def wait(self, job: str, is_true: Callable[[], object], what: str) -> None:
        """Wait until something is true of a job; raise TimeoutError with all that is known of the job."""
        try:
            wait_until(is_true, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}, but {self.slurm.show(job)}\n{self.output(job)}") from error

    def wait_for_text(self, job: str, pattern: str) -> None:
        """Wait until the job's output has `pattern`."""
        self.wait(job, lambda: re.search(pattern, self.output(job)), pattern)

    def wait_for_state(self, job: str, *states: str) -> None:
        self.wait(job, lambda: self.slurm.state(job) in states, f"{states}")

    def end_at_limit(self, job: str, after: str) -> None:
        """Let the time limit of a running job come `after` ("5seconds") from now; slurmctld looks every 30 s."""
        self.slurm.call("scontrol", "update", f"jobid={job}", f"EndTime=now+{after}")

    def wait_for_requeue(self, job: str) -> None:
        """Wait until a job is in the queue for its next life."""
        restarts = self.restarts[job] + 1
        self.wait(job, lambda: int(self.slurm.show(job)["Restarts"]) == restarts, f"requeue {restarts}")

    def next_life(self, job: str, *changes: str) -> None:
        """Wait for the next life of a requeued job and start it at once; Slurm would wait two minutes.

        changes: what `scontrol update` sets before.
        """
        self.restarts[job] += 1

        def has_begun() -> bool:
            shown = self.slurm.show(job)
            if int(shown["Restarts"]) < self.restarts[job]:
                return False
            if (shown["JobState"], shown["Reason"]) == ("PENDING", "BeginTime") and self.slurm.has_said_all():
                # slurmd refuses a job that starts in the second in which it was told to end the last life
                self.slurm.call("scontrol", "update", f"jobid={job}", *changes, "StartTime=now+1", code=None)
            return shown["JobState"] not in ("PENDING", "COMPLETING")

        self.wait(job, has_begun, f"the start of life {self.restarts[job]}")

    def end(self, job: str) -> str:
        """Wait for the job's end; return its exit code, code:signal."""
        self.wait_for_state(job, *DONE)
        return self.slurm.show(job)["ExitCode"]
