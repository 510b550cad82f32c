"""Training, one stage; read this first. `train` sets up and steps through it, `train_step` is one optimizer step."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cmbert.accel import check_kernels
from cmbert.config.deepspeed import activation_dtype, resolve_deepspeed
from cmbert.config.schema import Recipe
from cmbert.data.kernels import SPECIALS_PER_PIECE
from cmbert.data.ledger import LedgerWriter
from cmbert.data.loader import (
    BatchGeometry,
    LeftOut,
    RowReader,
    StepBatches,
    StepData,
    StepFacts,
    check_epochs,
    data_step,
    iterate_steps,
    open_reader,
)
from cmbert.errors import ConfigError
from cmbert.evaluate.memory import peak_memory_bytes
from cmbert.model.heads import MaskedLanguageModel
from cmbert.progress import duration
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from cmbert.train.distributed import Launch, max_over_ranks, read_launch, select_device, sum_over_ranks
from cmbert.train.engine import build_engine, start_distributed, stop_distributed
from cmbert.train.guards import require_finite
from cmbert.train.heldout import Heldout, open_heldout
from cmbert.train.metrics import MetricsWriter, check_wandb
from cmbert.train.optim import build_optimizer
from cmbert.train.preemption import EXIT_STOPPED, StopRequest
from cmbert.train.rates import compute_rates
from cmbert.train.run_directory import find_resume, open_run_directory
from cmbert.train.schedule import num_steps, step_learning_rate, step_mask_rate, step_tokens
from cmbert.train.source_loss import SourceLoss, mean_source_loss
from cmbert.train.starting_weights import check_starting_weights, starting_model
from cmbert.train.step_timer import StepTimer

PLAN_FOLDER = "plan"  # of the run directory: the rows of each shard set, so that a resume need not count documents

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything one rank holds while it trains."""

    recipe: Recipe
    directory: Path
    launch: Launch
    device: torch.device
    engine: Any
    reader: RowReader
    tokenizer: Tokenizer
    metrics: MetricsWriter | None
    ledger: LedgerWriter | None
    heldout: Heldout | None
    left_out: LeftOut
    step: int
    last_step: int
    first_step: int = field(init=False)
    timer: StepTimer = field(init=False)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.first_step = self.step
        self.timer = StepTimer(self.device)

    def time_left(self) -> str:
        """Return how long the steps still to do take at the mean pace of this call's steps, the first left out.

        The first step compiles what is compiled, and says nothing about the others.
        """
        done = self.step - self.first_step - 1
        if done < 1:
            self.started = time.perf_counter()
            return ""
        seconds = (time.perf_counter() - self.started) / done * (self.last_step - self.step)
        return f"  {' '.join(duration(seconds))} left"


def train(
    recipe: Recipe,
    *,
    resume: str,
    max_steps: int | None,
    stop_after_seconds: float | None,
    skip_steps: tuple[int, int] | None = None,
) -> int:
    """Train one stage of `recipe` to its end; return the exit code (EXIT_STOPPED if it was asked to stop before).

    resume: "auto" (continue what is there), "never" (refuse what is there) or a checkpoint's path.
    max_steps: stop after this many steps of this call. stop_after_seconds: likewise by the clock. skip_steps: leave out
    the batches that steps [first, last) would get.
    Raises CmbertError.
    """
    launch = read_launch(os.environ)
    if launch.rank > 0:
        logging.getLogger("cmbert").setLevel(logging.WARNING)  # one voice: every rank knows the same
    start = check_start(recipe, resume, launch, skip_steps)
    if start.step >= num_steps(recipe):
        logger.info("%s: already finished, %d steps", recipe.run_directory, start.step)
        return 0
    stop = StopRequest(stop_after_seconds)
    stop.listen()
    run = set_up(recipe, launch, start, max_steps)
    stopping = False
    try:
        for data, wait_seconds in timed(batches(run)):
            record = train_step(run, data)
            record |= evaluate(run)
            # One all-reduce for both: the most of any rank.
            asked_to_stop, peak_memory = max_over_ranks([stop.pending(), peak_memory_bytes(run.device)], run.device)
            record |= {"data_wait_seconds": wait_seconds, "peak_memory_bytes": int(peak_memory)}
            report(run, record, data.facts)
            stopping = asked_to_stop > 0
            if stopping or run.step == run.last_step or run.step % recipe.train.checkpoint_every_steps == 0:
                save(run)
            if stopping:
                break
        return finish(run, stop.reason() if stopping else None)
    finally:
        if run.metrics:
            run.metrics.close()
        if run.ledger:
            run.ledger.close()
        stop_distributed()


@dataclass(frozen=True)
class Start:
    """What a run begins with, checked before any rank waits for another."""

    deepspeed_config: dict[str, Any]
    tokenizer: Tokenizer
    reader: RowReader
    heldout: Heldout | None
    checkpoint: Path | None
    step: int
    left_out: LeftOut


def check_start(recipe: Recipe, resume: str, launch: Launch, skip_steps: tuple[int, int] | None) -> Start:
    """Check everything that a user can have wrong; nothing is written. Raises CmbertError."""
    deepspeed_config = resolve_deepspeed(recipe, launch.world_size)
    check_wandb(recipe.train.wandb_project)
    tokenizer = load_tokenizer(recipe.data.tokenizer, vocab_size=recipe.model.vocab_size)
    reader = open_reader(
        recipe.data,
        recipe.mask,
        tokenizer,
        recipe.train.seed,
        rows_per_step=recipe.train.rows_per_step,
        plan_folder=Path(recipe.run_directory) / PLAN_FOLDER,
    )
    check_epochs(reader.blend, recipe.data, num_steps(recipe) * recipe.train.rows_per_step)
    checkpoint, state = find_resume(recipe, resume, tokenizer, reader, launch.world_size)
    if checkpoint is None:
        check_starting_weights(recipe)
    heldout = open_heldout(recipe, tokenizer, launch)
    step = state.step if state else 0
    left_out = leave_out(tuple((first, last) for first, last in state.left_out) if state else (), skip_steps, step)
    check_kernels(recipe.kernels, select_device(launch), getattr(torch, activation_dtype(deepspeed_config)))
    return Start(deepspeed_config, tokenizer, reader, heldout, checkpoint, step, left_out)


def leave_out(before: LeftOut, skip_steps: tuple[int, int] | None, step: int) -> LeftOut:
    """Add the batches of steps [first, last) to those that were left out before. Raises ConfigError for steps done."""
    if skip_steps is None:
        return before
    first, last = skip_steps
    if not step <= first < last:
        raise ConfigError(f"--skip-steps {first}:{last}: must name steps still to do, {step} or later, first:last")
    batch = data_step(first, before)
    return (*before, (batch, batch + last - first))


def set_up(recipe: Recipe, launch: Launch, start: Start, max_steps: int | None) -> Run:
    """Join the ranks, build the model and restore what is there."""
    device = select_device(launch)
    start_distributed(launch, device)
    directory = open_run_directory(recipe, start.deepspeed_config, launch.rank)
    if launch.rank == 0:
        for source in start.reader.blend.sources:
            source.keep_plan()
    model = MaskedLanguageModel(recipe.model, recipe.kernels) if start.checkpoint else starting_model(recipe)
    engine = build_engine(model.to(device), build_optimizer(model, recipe.optimizer), start.deepspeed_config)
    if start.checkpoint:
        load_checkpoint(start.checkpoint, engine)
    last_step = num_steps(recipe) if max_steps is None else min(num_steps(recipe), start.step + max_steps)
    logger.info(
        "%s: %s on %d x %s, %d steps of %d tokens",
        recipe.run_directory,
        f"resuming at step {start.step} from {start.checkpoint}" if start.checkpoint else "starting",
        launch.world_size, device.type, num_steps(recipe), step_tokens(recipe),
    )  # fmt: skip
    metrics = MetricsWriter(directory, start.step, recipe) if launch.rank == 0 else None
    ledger = LedgerWriter(directory, start.step) if launch.rank == 0 else None
    return Run(
        recipe, directory, launch, device, engine, start.reader, start.tokenizer, metrics, ledger, start.heldout,
        start.left_out, start.step, last_step,
    )  # fmt: skip


def batches(run: Run) -> Iterator[StepData]:
    """Yield this rank's part of every step still to do."""
    geometry = BatchGeometry(
        rows_per_step=run.recipe.train.rows_per_step,
        micro_batch_rows=run.recipe.train.micro_batch_rows,
        rank=run.launch.rank,
        world_size=run.launch.world_size,
        left_out=run.left_out,
    )
    dataset = StepBatches(run.reader, geometry, partial(step_mask_rate, recipe=run.recipe))
    steps = range(run.step, run.last_step)
    return iterate_steps(dataset, steps, run.recipe.data.num_workers, pin_memory=run.device.type == "cuda")


def timed(steps: Iterator[StepData]) -> Iterator[tuple[StepData, float]]:
    """Yield each step's data with the seconds that the trainer waited for it."""
    while True:
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        yield data, time.perf_counter() - started


def train_step(run: Run, data: StepData) -> dict[str, Any]:
    """Do one optimizer step on (sum of the masked tokens' losses) / (masked tokens), both summed over all ranks."""
    started = time.perf_counter()
    engine, recipe, micro_batches, timer = run.engine, run.recipe, data.micro_batches, run.timer
    timer.start()
    (masked_tokens,) = sum_over_ranks([sum(len(batch.targets) for batch in micro_batches)], run.device)
    maskable_tokens = sum(data.facts.source_tokens)
    # DeepSpeed averages the gradient over ranks and micro-batches; we want the sum, over the global masked count.
    scale = run.launch.world_size * len(micro_batches) / max(masked_tokens, 1.0)
    learning_rate = step_learning_rate(run.step, recipe)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    loss_sum = torch.zeros((), device=run.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=run.device)
    source_loss = SourceLoss(len(recipe.data.sources), recipe.data.context_tokens, run.device)
    for index, (batch, row_sources) in enumerate(zip(micro_batches, data.row_sources, strict=True)):
        batch = batch.to(run.device)
        with timer.phase("forward"):
            loss, correct, losses = engine(*batch)
        with timer.phase("backward"):
            engine.backward(loss * scale)
        loss_sum, num_correct = loss_sum + loss.detach(), num_correct + correct
        source_loss.add(batch, losses, row_sources)
        if index + 1 < len(micro_batches):
            engine.step()  # counts the micro-batch; the optimizer moves only with the last
    global_loss, global_correct, *source_totals = sum_over_ranks(
        [loss_sum, num_correct, *source_loss.totals()], run.device
    )
    mean_loss = global_loss / max(masked_tokens, 1.0)
    require_finite(mean_loss, run.step)
    with timer.phase("optimizer"):
        engine.step()
    record = {
        "step": run.step,
        "tokens": (run.step + 1) * step_tokens(recipe),
        "loss": mean_loss,
        "accuracy": global_correct / max(masked_tokens, 1.0),
        "learning_rate": learning_rate,
        "mask_rate": step_mask_rate(run.step, recipe),
        "masked_tokens": masked_tokens,
        "real_tokens": maskable_tokens + SPECIALS_PER_PIECE * data.facts.num_pieces,
        "realised_mask_rate": masked_tokens / max(maskable_tokens, 1.0),
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
        **mean_source_loss(source_totals),
        **timer.read(),  # waits for the device, so that the seconds of the whole step are done, too
        "step_seconds": time.perf_counter() - started,
    }
    run.step += 1
    return record


def evaluate(run: Run) -> dict[str, float]:
    """Score the held-out rows when it is their turn. All ranks call this."""
    is_due = run.step % run.recipe.evaluation.every_steps == 0 or run.step == num_steps(run.recipe)
    if run.heldout is None or not is_due:
        return {}
    started = time.perf_counter()
    score = run.heldout.score(run.engine, run.device)
    return {**score, "heldout_seconds": time.perf_counter() - started}


def report(run: Run, record: dict[str, Any], facts: StepFacts) -> None:
    """Record a step and, now and then, print it with the time left. Only rank 0 does anything here."""
    if run.metrics is None or run.ledger is None:
        return
    run.ledger.write(record["step"], facts.ledger)
    record["data_step"] = facts.data_step
    record["source_tokens"] = facts.source_tokens
    record["unit_lengths"] = facts.unit_lengths
    record["straddle_rate"] = straddle_rate(run.reader, facts.source_tokens)
    seconds = record["step_seconds"] + record["data_wait_seconds"]
    record["tokens_per_second"] = record["real_tokens"] / seconds
    record |= compute_rates(
        run.recipe.model, facts.piece_lengths, record["masked_tokens"], seconds, run.launch.world_size, run.device
    )
    record["fill_rate"] = record["real_tokens"] / step_tokens(run.recipe)
    record["time"] = time.time()
    run.metrics.write(record)
    left = run.time_left()
    if run.step % run.recipe.train.log_every_steps == 0 or run.step in (1, run.last_step):
        logger.info(
            "step %d/%d  loss %.4f  accuracy %.3f  lr %.2e  mask %.3f  grad %.2f  %s tokens/s%s",
            run.step, run.last_step, record["loss"], record["accuracy"], record["learning_rate"], record["mask_rate"],
            record["grad_norm"], f"{record['tokens_per_second']:,.0f}", left,
        )  # fmt: skip
    if "heldout_loss" in record:
        logger.info(
            "step %d/%d  held-out loss %.4f  accuracy %.3f (%.1f s)", run.step, run.last_step,
            record["heldout_loss"], record["heldout_accuracy"], record["heldout_seconds"],
        )  # fmt: skip


def straddle_rate(reader: RowReader, source_tokens: list[int]) -> float | None:
    """Return the share of word boundaries inside a token, over the sources as a step mixed them; None if unknown."""
    rates = [source.shards.manifest.get("straddle", {}).get("rate") for source in reader.blend.sources]
    known = [(rate, tokens) for rate, tokens in zip(rates, source_tokens, strict=True) if rate is not None]
    total = sum(tokens for _, tokens in known)
    return sum(rate * tokens for rate, tokens in known) / total if total else None


def save(run: Run) -> None:
    """Write a checkpoint of the steps done so far. All ranks call this."""
    if run.ledger:
        run.ledger.sync()
    state = TrainState(
        step=run.step,
        rows=data_step(run.step, run.left_out) * run.recipe.train.rows_per_step,
        left_out=[list(batches) for batches in run.left_out],
        tokens=run.step * step_tokens(run.recipe),
        world_size=run.launch.world_size,
        zero_stage=run.engine.zero_optimization_stage(),
        tokenizer_fingerprint=run.tokenizer.fingerprint,
        shard_fingerprints=[source.shards.fingerprint for source in run.reader.blend.sources],
    )
    started = time.perf_counter()
    path = save_checkpoint(run.directory, run.engine, state, run.recipe.train.keep_checkpoints)
    logger.info("checkpoint %s (%.1f s)", path, time.perf_counter() - started)


def finish(run: Run, stopped_by: str | None) -> int:
    """Say how the call ended and return its exit code, the same on every rank."""
    if run.step == num_steps(run.recipe):
        logger.info("%s: stage finished after %d steps", run.recipe.run_directory, run.step)
        return 0
    why = stopped_by or "--max-steps"
    logger.info("%s: stopped at step %d (%s); the same command continues", run.recipe.run_directory, run.step, why)
    return EXIT_STOPPED if stopped_by else 0
