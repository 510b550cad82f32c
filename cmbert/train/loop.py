"""Training, one stage; read this first. `train` sets up and steps through it, `train_step` is one optimizer step."""

import gc
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmbert.checkpoint.retention import Retention
from cmbert.checkpoint.state import readable_states
from cmbert.checkpoint.writer import CheckpointWriter
from cmbert.cluster.distributed import Launch, any_rank, from_first_rank, read_launch, select_device, to_device
from cmbert.cluster.preemption import EXIT_STOPPED, StopRequest
from cmbert.cluster.watchdog import Watchdog
from cmbert.config.batch import taken_micro_batch
from cmbert.config.schema import Recipe
from cmbert.data.batches import BatchGeometry, StepData
from cmbert.data.loader_processes import iterate_steps
from cmbert.data.reader import StepBatches
from cmbert.memory import peak_memory_bytes
from cmbert.runs.directory import open_run_directory
from cmbert.runs.first_rows import begin_reading
from cmbert.runs.going_on import how_to_train_further
from cmbert.train.giving_up import give_up
from cmbert.train.heldout import score_all
from cmbert.train.run import Run, guard_of, open_reporter
from cmbert.train.saving import finish_save, is_save_due, maybe_save, note_resume, rewind
from cmbert.train.source_loss import SourceLoss
from cmbert.train.start import (
    Start,
    check_start,
    collective_timeout,
    find_beginning,
    open_engine,
    prove_data,
    skip_once,
    take_lease,
)
from cmbert.train.step_figures import LaunchedStep, RankState, figures_of, send_to_host, sum_step
from cmbert.zero.engine import set_accumulation, start_distributed, stop_distributed, time_steps

LOGS_FOLDER = "logs"  # of the run directory: stacks of ranks that hung
COLLECT_EVERY_STEPS = 100  # a step leaves no cycles (measured at ZeRO 1, 2, 3), what happens now and then may

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    resume: str,
    max_steps: int | None,
    stop: StopRequest,
    skip_steps: tuple[int, int] | None = None,
    allow_unfinished: bool = False,
    branch: str | None = None,
) -> int:
    """Train one stage of `recipe` to its end; return the exit code (EXIT_STOPPED if it was asked to stop before).

    resume: "auto" (continue what is there), "never" (refuse what is there) or a checkpoint's path.
    max_steps: stop after this many steps of this call. stop: listens to signals and the clock. skip_steps: skip
    the batches that steps [first, last) would get. allow_unfinished: train.init_from may name a run not at its end.
    branch: RUN@STEP, where a new run is to begin with all that the other one had. Raises CmbertError.
    """
    launch = read_launch(os.environ)
    if launch.rank > 0:
        logging.getLogger("cmbert").setLevel(logging.ERROR)  # every rank knows the same, and rank 0 says it
    start = check_start(recipe, resume, launch, allow_unfinished=allow_unfinished, asked_branch=branch)
    if start.is_finished:
        done = {path: state.step for path, state in readable_states(start.candidates).items()}
        further = how_to_train_further(recipe, done)
        logger.info("%s: already finished, %d steps; %s", recipe.run_directory, start.schedule.num_steps, further)
        return 0
    if not start_distributed(launch, select_device(launch), collective_timeout(recipe), stop.pending):
        begun = "all ranks were there" if launch.world_size > 1 else "it began"
        logger.info(
            "%s: stopped before %s (%s); the same command starts it", recipe.run_directory, begun, stop.reason()
        )
        return EXIT_STOPPED
    watchdog = Watchdog(Path(recipe.run_directory) / LOGS_FOLDER, launch, recipe.guards.hang_seconds)
    watchdog.listener.start()
    run = None
    try:
        run = set_up(recipe, launch, start, watchdog, max_steps, skip_steps)
        while (outcome := do_steps(run, stop)) == "rewind":
            rewind(run)
        code = finish(run, stop.reason() if outcome == "stop" else None)
        watchdog.stop()
        run.close()
        stop_distributed()
        return code
    except Exception as error:
        give_up(error, watchdog, run)
        raise
    finally:
        gc.enable()
        gc.unfreeze()


def set_up(
    recipe: Recipe,
    launch: Launch,
    start: Start,
    watchdog: Watchdog,
    max_steps: int | None,
    skip_steps: tuple[int, int] | None,
) -> Run:
    """Take the run directory, find the checkpoint, build the model. All ranks call this. Raises CmbertError."""
    lease = take_lease(Path(recipe.run_directory), launch)
    try:
        resume = find_beginning(recipe, start, launch)
        prove_data(recipe, start, resume, launch)
        begin_reading(recipe, start.reader, resume.state)
        progress = skip_once(resume.progress, skip_steps, start.schedule)
        from_first_rank(partial(open_run_directory, recipe, start.deepspeed_config, start.reader))
        engine = open_engine(recipe, start, resume, launch)
        train = recipe.train
        retention = Retention(train.keep_checkpoints, train.keep_every_tokens)
        num_steps = start.schedule.num_steps
        last_step = num_steps if max_steps is None else min(num_steps, progress.step + max_steps)
        device = select_device(launch)
        run = Run(
            recipe=recipe,
            schedule=start.schedule,
            directory=lease.run,
            launch=launch,
            device=device,
            reader=start.reader,
            tokenizer=start.tokenizer,
            heldout=start.heldout,
            engine=engine,
            guard=guard_of(engine, recipe, resume),
            writer=CheckpointWriter(lease, engine, retention, train.max_failed_saves),
            watchdog=watchdog,
            timer=time_steps(device),
            progress=progress,
            last_step=last_step,
        )
        run.reporter = open_reporter(run)
        note_resume(run, resume)
    except BaseException:
        lease.release()
        raise
    gc.collect()
    gc.freeze()  # what lives as long as the run need not be looked at again
    gc.disable()
    watchdog.start()
    return run


def do_steps(run: Run, stop: StopRequest) -> str:
    """Train until the last step ("end"), a request to stop ("stop") or a spike to go back from ("rewind")."""
    if any_rank(stop.pending(), run.device):
        return "stop"
    is_first = True  # and the user waits to see that it trains: it may have compiled for a minute
    for data, wait_seconds in timed(batches(run), run):
        launched = train_step(run, data, wait_seconds, stop)
        run.launched.append(launched)
        launched.notes |= evaluate(run)
        at_once = is_first or launched.notes or is_save_due(run)
        outcome = catch_up(run, num_left=0 if at_once else 1)
        is_first = False
        if outcome == "rewind":
            return outcome
        maybe_save(run, outcome == "stop")
        collect_garbage(run)
        if outcome == "stop":
            return outcome
    return "end"


def catch_up(run: Run, num_left: int) -> str:
    """Read the figures of the steps launched, oldest first, but for the newest `num_left`; report and judge them.

    Returns "go on", or "stop" or "rewind" as of `do_steps`; after a "stop" no step is left. All ranks call this.
    """
    outcome = "go on"
    while len(run.launched) > (0 if outcome == "stop" else num_left):
        run.watchdog.enter("end of the step", run.launched[0].step)
        launched = run.launched.popleft()
        record, judgement, state = launched.result(run.schedule)
        verdict = run.guard.finish(launched.step, record["loss"], judgement)
        if verdict != "ok":
            run.event(verdict, run.guard.skip_reason(verdict, record, judgement), launched.step + 1)
            if verdict == "spike" and run.recipe.guards.spike_action == "rewind":
                run.launched.clear()  # what was launched after it is undone, too
                run.step = launched.step + 1
                return "rewind"
        run.watchdog.enter("checkpoint", launched.step + 1)
        if run.reporter is not None:
            run.reporter.report({**record, "skipped_steps": run.guard.num_skipped}, launched.facts)
        if run.writer.state is not None and not state.writing:
            finish_save(run)
        outcome = "stop" if state.stopping else outcome
    return outcome


def collect_garbage(run: Run) -> None:
    """Let Python look for cycles at set times, the same on all ranks: a rank that stops for it stops all."""
    if run.step % COLLECT_EVERY_STEPS == 0:
        gc.collect()
        gc.freeze()  # what has lived so long stays: the next look is short


def batches(run: Run) -> Iterator[StepData]:
    """Yield this rank's part of every step still to do."""
    geometry = BatchGeometry(
        step_rows=run.schedule.rows,
        micro_batch_rows=taken_micro_batch(run.recipe.train, run.launch.world_size),
        rank=run.launch.rank,
        world_size=run.launch.world_size,
        skipped_rows=run.progress.skipped_rows,
    )
    dataset = StepBatches(run.reader, geometry, run.schedule.mask_rate)
    steps = range(run.step, run.last_step)
    return iterate_steps(dataset, steps, run.recipe.data.num_workers, pin_memory=run.device.type == "cuda")


def timed(steps: Iterator[StepData], run: Run) -> Iterator[tuple[StepData, float]]:
    """Yield each step's data with the seconds that the trainer waited for it."""
    while True:
        run.watchdog.enter("data", run.step)
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        yield data, time.perf_counter() - started


def train_step(run: Run, data: StepData, wait_seconds: float, stop: StopRequest) -> LaunchedStep:
    """Do one optimizer step on (sum of the masked tokens' losses) / (masked tokens), both summed over all ranks.

    On a GPU: launch it. Nothing here waits for the device, and `LaunchedStep.result` does later. Whether this rank was
    asked to stop, all ranks learn from the step's figures.
    """
    run.watchdog.enter("forward and backward", run.step)
    engine, recipe, timer = run.engine, run.recipe, run.timer
    timer.start()
    data = data.to(run.device)
    micro_batches = data.micro_batches
    masked = to_device([sum(len(batch.targets) for batch in micro_batches)], run.device)
    counted = torch.distributed.all_reduce(masked, async_op=True)
    set_accumulation(engine, len(micro_batches))
    loss_sum = torch.zeros((), device=run.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=run.device)
    source_loss = SourceLoss(len(recipe.data.sources), recipe.data.context_tokens, run.device)
    for index, (batch, row_sources) in enumerate(zip(micro_batches, data.row_sources, strict=True)):
        engine.set_gradient_accumulation_boundary(index + 1 == len(micro_batches))
        with timer.phase("forward"):
            loss, correct, losses = engine(*batch)
        if index == 0:
            counted.wait()
            # DeepSpeed averages the gradient over ranks and micro-batches; we want the sum, over the global count.
            scale = (run.launch.world_size * len(micro_batches) / masked[0].clamp_min(1.0)).float()
        with timer.phase("backward"):
            engine.backward(loss * scale)
        source_loss.add(batch, losses, row_sources)
        loss_sum, num_correct = loss_sum + loss.detach(), num_correct + correct
        if index + 1 < len(micro_batches):
            engine.step()  # counts the micro-batch; the optimizer moves only with the last
    state = RankState(float(stop.pending()), float(run.writer.is_writing()), float(peak_memory_bytes(run.device)))
    sums = sum_step(loss_sum, num_correct, source_loss, state, run.launch)
    mean_loss = sums.loss / masked[0].clamp_min(1.0)
    run.watchdog.enter("optimizer", run.step)
    learning_rate = run.schedule.learning_rate(run.step)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    run.writer.hold_weights()
    with timer.phase("optimizer"):
        judgement = run.guard.step(engine, mean_loss)
    figures = send_to_host(figures_of(masked[0], mean_loss, sums, judgement))
    run.step += 1
    return LaunchedStep(run.step - 1, data.facts, wait_seconds, figures, timer.close())


def evaluate(run: Run) -> dict[str, Any]:
    """Score the held-out rows when it is their turn. All ranks call this."""
    is_due = run.step % run.recipe.evaluation.every_steps == 0 or run.is_finished
    if not run.heldout or not is_due:
        return {}
    run.watchdog.enter("evaluation", run.step)
    run.launched[-1].times.wait()
    return score_all(run.heldout, run.engine, run.device)


def finish(run: Run, stopped_by: str | None) -> int:
    """Say how the call ended and return its exit code, the same on every rank."""
    if run.is_finished:
        logger.info("%s: stage finished after %d steps", run.recipe.run_directory, run.step)
        return 0
    why = stopped_by or "--max-steps"
    logger.info("%s: stopped at step %d (%s); the same command continues", run.recipe.run_directory, run.step, why)
    return EXIT_STOPPED if stopped_by else 0
