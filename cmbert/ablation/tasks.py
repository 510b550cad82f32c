"""Downstream tasks of a sweep: where their data lie, how a training is fine-tuned on one, what it scored there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from cmbert.ablation.lists import AblationList, ArmRun
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import misfit
from cmbert.transfer.finetune.results import read_results
from cmbert.transfer.tasks.task import Task, find_task

TASKS_FOLDER = "tasks"  # in a training's folder: what `cmbert finetune` writes
SAMPLE_SUFFIX = "_10k"  # of a task on a sample, whose folder may have the whole task's name


class Scored(TypedDict):
    """One score of a split, over the seeds of a fine-tuning."""

    mean: float


def tasks_of(ablation: AblationList) -> dict[str, Task]:
    """Return the list's tasks by the names that it gives them."""
    return {given: find_task(given) for given in ablation.tasks}


def task_folders(ablation: AblationList, root: Path | None) -> dict[str, Path]:
    """Return the folder below `root` of each task that the list names; none without a root. Raises ConfigError."""
    if root is None:
        return {}
    if not ablation.tasks:
        raise ConfigError(f"--tasks-data {root}: the list names no tasks; add some, or leave the option out")
    found = {}
    for given, task in tasks_of(ablation).items():
        names = dict.fromkeys((task.name, f"{task.name}_public", task.name.removesuffix(SAMPLE_SUFFIX)))
        files = [root / name / task.train[0] for name in names]
        folders = [file.parent for file in files if file.is_file()]
        if not folders:
            raise ConfigError(
                f"--tasks-data {root}: no data of {task.name}: none of {', '.join(map(str, files))} is there"
            )
        found[given] = folders[0]
    return found


def task_commands(run: ArmRun, ablation: AblationList, folders: Mapping[str, Path]) -> list[list[str]]:
    """Return the arguments of `cmbert finetune` for every task that has a folder and that the run has no score of."""
    done = task_scores(run, ablation)
    start = ["finetune", "--model", run.stages[-1].run_directory, "--name", run.arm, "--seeds", "1"]
    start += ["--output", str(run.folder / TASKS_FOLDER)]
    return [
        [*start, "--task", given, "--data", str(folders[given])]
        for given, task in tasks_of(ablation).items()
        if given in folders and task.name not in done
    ]


def task_scores(run: ArmRun, ablation: AblationList) -> dict[str, float]:
    """Return what a run scored on the dev split of the list's tasks, percent. Raises CheckpointError."""
    folder = run.folder / TASKS_FOLDER
    written = {result["task"]: result for result in read_results(folder)}
    names = [task.name for task in tasks_of(ablation).values()]
    return {name: _dev_score(written[name], folder / name) for name in names if name in written}


def _dev_score(result: Mapping[str, Any], where: Path) -> float:
    fault = misfit(result["scores"], list[str], "scores") or misfit(
        result["splits"], dict[str, dict[str, Any]], "splits"
    )
    first: Any = None
    if fault is None:
        first = result["splits"].get("dev", {}).get(next(iter(result["scores"]), ""))
        fault = misfit(first, Scored, "splits.dev")
    if fault:
        raise CheckpointError(f"{where}: {fault}; not what `cmbert finetune` writes; remove it and run again")
    return float(first["mean"])
