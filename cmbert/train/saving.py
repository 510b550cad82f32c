"""When checkpoints are written, what a failed one means, and the way back from a spike."""

import logging
import os
from dataclasses import replace
from functools import partial

from cmbert.checkpoint.files import (
    CHECKPOINTS,
    DAMAGED_SUFFIX,
    leave_behind,
    name_newest,
    quarantine,
    resume_candidates,
)
from cmbert.checkpoint.state import TrainState
from cmbert.checkpoint.writer import SaveReport
from cmbert.cluster.distributed import from_first_rank
from cmbert.data.batches import data_row
from cmbert.errors import CheckpointError, TransientError, advice
from cmbert.runs.branch import describe_branch
from cmbert.train.guards import TrainingError
from cmbert.train.run import Run, guard_of, open_reporter
from cmbert.train.start import Resume, choose_checkpoint, restore, skip

logger = logging.getLogger(__name__)


def is_save_due(run: Run) -> bool:
    """Return whether a checkpoint follows the steps done so far."""
    return _is_permanent_due(run) or _is_ephemeral_due(run)


def _is_permanent_due(run: Run) -> bool:
    return run.step == run.last_step or run.step % run.recipe.train.checkpoint_every_steps == 0


def _is_ephemeral_due(run: Run) -> bool:
    every = run.recipe.train.ephemeral_every_steps
    return bool(every) and run.step % every == 0


def maybe_save(run: Run, stopping: bool) -> None:
    """Begin a checkpoint when it is time; before the end of the call, wait until it is there. All ranks call this."""
    is_last = stopping or run.step == run.last_step
    permanent = stopping or _is_permanent_due(run)
    if permanent or _is_ephemeral_due(run):
        if run.writer.state is not None:
            finish_save(run)
        begin_save(run, ephemeral=not permanent)
    if is_last:
        report = finish_save(run)
        if report.error is not None:
            raise (TransientError if report.may_pass else CheckpointError)(
                f"{run.directory}: the steps since the newest checkpoint are lost, the last one could not be written: "
                f"{report.error}; {advice(report.may_pass)}"
            )


def begin_save(run: Run, *, ephemeral: bool) -> None:
    """Begin to write a checkpoint of the steps done so far."""
    rows = data_row(run.schedule.rows_before(run.step), run.progress.skipped_rows)
    state = TrainState(
        **vars(run.progress),
        rows=rows,
        source_rows=run.reader.blend.consumed(rows),
        first_rows=run.reader.blend.begins,
        first_row=run.reader.blend.first_rows[0],
        tokens=run.schedule.tokens_before(run.step),
        world_size=run.launch.world_size,
        zero_stage=run.engine.zero_optimization_stage(),
        optimizer_kind=run.recipe.optimizer.kind,
        tokenizer_fingerprint=run.tokenizer.fingerprint,
        shard_fingerprints=[source.shards.fingerprint for source in run.reader.blend.sources],
        ephemeral=ephemeral,
        guard=run.guard.memory(),
        job=os.environ.get("SLURM_JOB_ID", ""),
    )
    run.writer.begin(state, run.reporter.sync if run.reporter else lambda: None)


def finish_save(run: Run) -> SaveReport:
    """Publish the checkpoint on its way and say what became of it. All ranks call this."""
    report = run.writer.finish()
    if report.error is not None:
        run.event(
            "failed save",
            f"checkpoint of step {report.step} could not be written ({report.error}); older ones are intact, failure "
            f"{run.writer.num_failures} of {run.recipe.train.max_failed_saves} in a row that training survives",
        )
        return report
    logger.info(
        "checkpoint %s: %.2f GB written in %.1f s; training stood still for %.2f s",
        report.path, report.num_bytes / 1e9, report.write_seconds, report.copy_seconds,
    )  # fmt: skip
    if report.untidy is not None:
        run.event("untidy", f"{report.path} is there, but what follows a checkpoint was not all done: {report.untidy}")
    if run.reporter is not None:
        run.reporter.notes |= {
            "checkpoint_stall_seconds": report.copy_seconds,
            "checkpoint_write_seconds": report.write_seconds,
        }
    return report


def note_resume(run: Run, resume: Resume) -> None:
    """Say where the run begins, and leave the checkpoints as those who look for one shall find them."""
    begins = f"resuming at step {run.step} from {resume.checkpoint}" if resume.checkpoint else "starting"
    logger.info(
        "%s: %s on %d x %s, %d steps, %d tokens%s",
        run.directory, begins, run.launch.world_size, run.device.type, run.schedule.num_steps,
        run.recipe.train.total_tokens,
        f"; this call ends after step {run.last_step}" if run.last_step < run.schedule.num_steps else "",
    )  # fmt: skip
    quarantine_others(run, resume)
    if resume.branch and resume.state:
        logger.info("%s: %s", run.directory, describe_branch(resume.branch, resume.state))
    if resume.state and resume.state.world_size != run.launch.world_size:
        run.event(
            "elastic resume", f"resumed a checkpoint of {resume.state.world_size} ranks on {run.launch.world_size}"
        )


def quarantine_others(run: Run, resume: Resume) -> None:
    """Rename what the run does not go on from: damaged checkpoints, and those that it goes back from; name the newest.

    All ranks call this. Raises LeaseLostError.
    """
    from_first_rank(run.writer.lease.check)
    for path, lines in resume.passed_over.items():
        aside = from_first_rank(partial(quarantine, path, DAMAGED_SUFFIX))
        run.event("damaged checkpoint", f"damaged checkpoint, quarantined as {aside}: {'; '.join(lines)}")
    if resume.checkpoint:
        for path in from_first_rank(partial(leave_behind, run.directory / CHECKPOINTS, resume.checkpoint)):
            run.event("left behind", f"this run goes on from {resume.checkpoint}; what came after it is kept as {path}")
        from_first_rank(partial(name_newest, run.directory))


def rewind(run: Run) -> None:
    """Go back from a spike to the last good checkpoint and leave its batches out. All ranks call this.

    Raises TrainingError after guards.max_rewinds of this call, or without a checkpoint to go back to.
    """
    spike, guards = run.step - 1, run.recipe.guards
    run.num_rewinds += 1
    if run.num_rewinds > guards.max_rewinds:
        raise TrainingError(
            f"step {spike}: a spike after {guards.max_rewinds} rewinds; lower schedule.lr_max in a run of its own, or "
            "look at the data (cmbert ledger)"
        )
    if run.writer.state is not None:
        finish_save(run)
    resume = choose_checkpoint(from_first_rank(lambda: resume_candidates(run.directory)), run.launch)
    if resume.state is None:
        raise TrainingError(f"step {spike}: a spike, and no checkpoint yet to go back to; resume to start again")
    quarantine_others(run, resume)
    back = replace(run.progress, step=resume.progress.step)
    first = max(back.step, spike + 1 - guards.rewind_steps)
    restore(run.engine, resume, run.launch, run.directory)
    run.guard = guard_of(run.engine, run.recipe, resume)
    run.event("rewind", f"back to {resume.checkpoint}; the batches of steps {first} to {spike} stay out")
    run.progress = skip(back, (first, spike + 1), run.schedule)
    if run.reporter is not None:
        run.reporter.close()
        run.reporter = open_reporter(run)
