"""`cmbert ablate`: train every arm of a list with every seed, score it, compare; a second call goes on.

Arms with learning rates are trained at each with the first seed before any other seed begins, at the best of them.

Each training is `cmbert train` on a recipe that lies beside it, so anyone can repeat one by hand. One training has one
GPU, or one share of the cores; as many run at once as there are.
"""

import fcntl
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cmbert.ablation.comparison import write_comparison
from cmbert.ablation.lists import AblationList, ArmRun, load_list, plan_runs
from cmbert.ablation.results import best_rates, unscored
from cmbert.ablation.tasks import task_commands, task_folders
from cmbert.config.load import differing_keys, load_recipe, write_resolved
from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.progress import Progress
from cmbert.runs.metrics import METRICS_FILE
from cmbert.schedule import Schedule

logger = logging.getLogger(__name__)

RECIPE_FILE, LOG_FILE = "recipe.toml", "log.txt"
POLL_SECONDS = 0.5
TAIL_BYTES = 1 << 16  # of metrics.jsonl: more than its last line


def ablate(
    path: Path,
    output: Path | None,
    *,
    text: str,
    base: Path | None,
    num_seeds: int | None,
    num_jobs: int | None,
    tasks_data: Path | None = None,
) -> None:
    """Run the list at `path` into `output`, and write index.html, results.md and results.json there.

    text: what `{text}` stands for in the list's `prepare`, as of `data_tools sample --from`. base: recipe in place of
    the list's. num_jobs: trainings at once; None = one per GPU, else one per core. tasks_data: holds a folder for each
    of the list's tasks; None = no task is run.
    Raises ConfigError for a list that is wrong or not the one that `output` holds, CheckpointError when another call
    trains there, InputError when trainings failed.
    """
    ablation = load_list(path, base)
    folder, seeds = output or Path("runs/ablations") / path.stem, num_seeds or ablation.seeds
    data = task_folders(ablation, tasks_data)
    runs = _planned(ablation, path, folder, seeds)
    if ablation.tasks and not data:
        logger.info("%s: not fine-tuned on %s: --tasks-data DIR does it", path, ", ".join(ablation.tasks))
    for command in ablation.prepare if unscored(runs, ablation) else ():
        prepare(command.replace("{text}", shlex.quote(text)), path)
    failed = list[ArmRun]()
    if any(arm.learning_rates for arm in ablation.arms):
        first = [run for run in runs if run.seed == 0]
        waiting = unscored(first, ablation)
        logger.info("%s: %d trainings choose the learning rates, %d to do", folder, len(first), len(waiting))
        failed = _train_all(waiting, ablation, {}, num_jobs)
        runs = _planned(ablation, path, folder, seeds, best := best_rates(ablation, runs))
        logger.info("best learning rates: %s", ", ".join(f"{name} {rate:g}" for name, rate in best.items()) or "none")
        chosen = [run for run in runs if run.rate == best.get(run.arm)]
    else:
        chosen = runs
    waiting = [run for run in chosen if run not in failed and commands_of(run, ablation, data)]
    logger.info("%s: %d trainings of %d arms, %d to do", folder, len(chosen), len(ablation.arms), len(waiting))
    failed += _train_all(waiting, ablation, data, num_jobs)
    page = write_comparison(folder, ablation, runs)
    print((folder / "results.md").read_text(encoding="utf-8"))
    print(f"page {page}")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(runs)} trainings failed: {', '.join(str(run.folder) for run in failed)}; see the "
            f"end of their {LOG_FILE}; the same command tries them again"
        )


def _planned(
    ablation: AblationList, where: Path, folder: Path, num_seeds: int, best: Mapping[str, float] | None = None
) -> list[ArmRun]:
    """Return the trainings as `plan_runs` does, their recipes written. Raises ConfigError."""
    runs = plan_runs(ablation, where, folder, num_seeds, best)
    for run in runs:
        _claim(run)
    return runs


def _claim(run: ArmRun) -> None:
    """Write the run's recipes. Raises ConfigError when it was started with others."""
    for stage in run.stages:
        file = Path(stage.run_directory) / RECIPE_FILE
        if file.is_file():
            changed = differing_keys(load_recipe(file), stage)
            if changed:
                raise ConfigError(
                    f"{file}: {changed[0]} is another than the list's; remove {run.folder}, or name another --output"
                )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_resolved(stage, file)


def prepare(command: str, where: Path) -> None:
    """Run one command of `data_tools`; what it has done before it does not do again. Raises as the command fails."""
    words = shlex.split(command)
    if words[:1] != ["data_tools"]:
        raise ConfigError(f"{where}: prepare: {command!r} is no command of data_tools")
    print(f"$ {command}", flush=True)
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if code < 0 or code == 130:
        raise KeyboardInterrupt
    if code:
        raise InputError(f"{where}: prepare: `{command}` ended with exit code {code}")


def places(num_jobs: int | None) -> list[dict[str, str]]:
    """Return what to add to the environment of each training that runs at once: its GPU, or its share of the cores."""
    import torch

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        jobs = num_jobs or cores
        return [{"OMP_NUM_THREADS": str(max(1, cores // jobs))}] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    jobs = num_jobs or len(gpus)
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)], **threads} for index in range(jobs)]


@dataclass
class Job:
    """A run in progress: its commands one after the other, in one place."""

    run: ArmRun
    commands: list[list[str]]
    place: dict[str, str]
    log: IO[bytes]
    process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        self.next()

    def next(self) -> None:
        """Start the next command."""
        command = self.commands.pop(0)
        self.log.write(f"$ {shlex.join(command)}\n".encode())
        self.log.flush()
        self.process = subprocess.Popen(
            command, env={**os.environ, **self.place}, stdout=self.log, stderr=subprocess.STDOUT
        )


def commands_of(run: ArmRun, ablation: AblationList, data: Mapping[str, Path]) -> list[list[str]]:
    """Return what is left to do for a run: train its stages and score the last, fine-tune it on tasks with data."""
    cmbert = [sys.executable, "-m", "cmbert"]
    last = run.stages[-1]
    train = [[*cmbert, "train", str(Path(stage.run_directory) / RECIPE_FILE)] for stage in run.stages]
    score = [*cmbert, "eval", last.run_directory, "--data", last.evaluation.shards]
    score += ["--context", ",".join(map(str, ablation.contexts)), "--unit", ",".join(ablation.units)]
    first = [*train, [*score, "--output", str(run.score_file)]] if unscored([run], ablation) else []
    return first + [[*cmbert, *command] for command in task_commands(run, ablation, data)]


def open_log(run: ArmRun) -> IO[bytes]:
    """Open the log that a run's processes write to, locked as long as any of them lives, also when this one is killed.

    Raises CheckpointError when it is locked already: two trainings in one directory would spoil each other's files.
    """
    log = open(run.folder / LOG_FILE, "ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise CheckpointError(
            f"{run.folder}: still in training, by another call or one that was killed; wait until it is done, or stop "
            f"it: pkill -f {run.folder}"
        ) from None
    return log


def _train_all(
    runs: Sequence[ArmRun], ablation: AblationList, data: Mapping[str, Path], num_jobs: int | None
) -> list[ArmRun]:
    """Train and score `runs`, as many at once as there are places; return those that failed."""
    if not runs:
        return []
    free = places(num_jobs)
    waiting, failed, active = list(runs), list[ArmRun](), list[Job]()
    progress = Progress(f"{len(runs)} trainings", sum(map(_total_steps, runs)), "steps", done=sum(map(_steps, runs)))
    counted = progress.done
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or active:
            while waiting and free:
                run = waiting.pop(0)
                active.append(Job(run, commands_of(run, ablation, data), free.pop(0), open_log(run)))
            time.sleep(POLL_SECONDS)
            for job in [job for job in active if job.process.poll() is not None]:
                if job.process.returncode == 0 and job.commands:
                    job.next()
                    continue
                active.remove(job)
                free.append(job.place)
                job.log.close()
                failed += [job.run] if job.process.returncode else []
                word = "failed" if job.process.returncode else "done"
                logger.info("%s, seed %d: %s; %d to do", job.run.arm, job.run.seed, word, len(waiting) + len(active))
            steps = sum(map(_steps, runs))
            progress.advance(steps - counted)
            counted = steps
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, previous)
        for job in active:  # interrupted: each saves a checkpoint and leaves
            job.process.send_signal(signal.SIGTERM)
        for job in active:
            job.process.wait()
    return failed


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _total_steps(run: ArmRun) -> int:
    return sum(Schedule.of(stage).num_steps for stage in run.stages)


def _steps(run: ArmRun) -> int:
    """Return the steps that a run has done so far, by the last whole line of its metrics."""
    steps = 0
    for stage in run.stages:
        path = Path(stage.run_directory) / METRICS_FILE
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
        if len(lines) > 1 and (found := re.match(rb'{"step": (\d{1,15}),', lines[-2])):
            steps += int(found[1]) + 1
    return steps
