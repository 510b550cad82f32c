"""The lives of a job: does its run get on? What a start leaves in the run directory, and what it must reach."""

import os
from pathlib import Path

from cmbert.checkpoint.files import resume_candidates
from cmbert.checkpoint.state import readable_states
from cmbert.cluster.distributed import Launch
from cmbert.cluster.node_checks import node_name
from cmbert.cluster.preflight import LIFE_FILE
from cmbert.config.schema import Recipe
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.whole import write_text
from cmbert.runs.branch import check_branch, find_branch
from cmbert.runs.directory import find_resume
from cmbert.runs.metrics import append_event, read_events
from cmbert.schedule import Schedule
from cmbert.train.starting_weights import check_starting_weights

LIFE = "life"  # kind of the event that a job's start leaves in the run directory
NO_CHECKPOINT = "-"


def steps_to_reach(
    recipe: Recipe, resume: str, max_steps: int | None, allow_unfinished: bool, asked_branch: str | None = None
) -> tuple[int, int]:
    """Return the step that this life must reach and the recipe's last. Raises CmbertError if it may not begin.

    What is refused is what `train` refuses of the run directory, of train.init_from and of --branch.
    """
    branch = find_branch(recipe, asked_branch)
    candidates = find_resume(recipe, resume, branch)
    if branch and branch.checkpoint in candidates:
        check_branch(recipe, branch)
    if not candidates:
        check_starting_weights(recipe, allow_unfinished=allow_unfinished)
    newest = next(iter(readable_states(candidates).values()), None)
    last_step = Schedule.of(recipe).num_steps
    return last_step if max_steps is None else min((newest.step if newest else 0) + max_steps, last_step), last_step


def begin_life(run: Path, launch: Launch, result: Path, max_lives: int | None, reach: tuple[int, int]) -> None:
    """Record that a life of this job begins, in the run directory and in `result`. Raises CheckpointError, ConfigError.

    `life` there gets, tabs between: the run directory, the newest checkpoint, the number of this job's lives that began
    at it, and `reach`: the step that this life must reach and the recipe's last.
    """
    if set(str(run)) & set("\t\r\n"):
        raise ConfigError(f"run_directory: {str(run)!r} has a tab or a line's end in it; name it otherwise")
    run.mkdir(parents=True, exist_ok=True)
    job, restart = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    candidates = resume_candidates(run)
    newest = candidates[0].name if candidates else NO_CHECKPOINT
    before = 0
    for event in reversed([event for event in read_events(run) if event["kind"] == LIFE]):
        if (event["job"], event["checkpoint"]) != (job, newest):
            break
        before += 1
    if max_lives is not None and before >= max_lives:
        raise CheckpointError(
            f"{run}: {before} lives of job {job} began at checkpoint {newest} and left no newer one; the job's output "
            "says why; mend that and submit again"
        )
    step = int(newest.rpartition("_")[2]) if candidates else 0
    where = os.environ.get("SLURM_JOB_NODELIST", node_name())
    text = f"job {job}, restart {restart}: {launch.world_size} ranks on {where}"
    append_event(run, LIFE, step, text, job=job, checkpoint=newest)
    write_text(result / LIFE_FILE, f"{run}\t{newest}\t{before + 1}\t{reach[0]}\t{reach[1]}\n")
