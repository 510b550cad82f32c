"""How a run begins: everything a user can have wrong is checked before any rank waits for another, then ranks join."""

import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmbert.accel import prepare_kernels
from cmbert.checkpoint.files import CHECKPOINTS, UNIVERSAL_SUFFIX, damaged_files
from cmbert.checkpoint.state import Progress, TrainState, read_state, readable_states
from cmbert.cluster.distributed import Launch, from_first_rank, gather_from_ranks, on_first_rank, select_device
from cmbert.config.batch import describe_micro_batch
from cmbert.config.deepspeed import activation_bytes, activation_dtype, resolve_deepspeed, zero_stage
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import Recipe
from cmbert.data.batches import data_row, merge_ranges
from cmbert.data.reader import RowReader, open_reader
from cmbert.data.shards.integrity import Crew
from cmbert.data.sources import check_epochs, describe_unread, prove_ids
from cmbert.errors import CheckpointError, ConfigError, TransientError, advice, describe, may_pass
from cmbert.files.folders import building
from cmbert.files.lease import Lease, claim, myself
from cmbert.memory import require_memory
from cmbert.model.cost import FP32_BYTES, estimate_activations, optimizer_bytes
from cmbert.model.heads import MaskedLanguageModel
from cmbert.runs.branch import Branch, find_branch, keep_branch, state_in_branch
from cmbert.runs.directory import PLAN_FOLDER, check_fits, find_resume
from cmbert.runs.metrics import check_wandb
from cmbert.schedule import Schedule
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.train.heldout import Heldout, open_heldout
from cmbert.train.starting_weights import check_starting_weights, starting_model
from cmbert.zero.engine import build_engine, convert_to_universal, load_engine
from cmbert.zero.groups import build_optimizer

HANG_MARGIN = 2  # a collective fails by itself only after this many times guards.hang_seconds: the watchdog says more

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a run begins with, the same on every rank."""

    schedule: Schedule
    deepspeed_config: dict[str, Any]
    tokenizer: Tokenizer
    reader: RowReader
    heldout: list[Heldout]
    resume: str
    """What --resume says."""
    branch: str | None
    """What --branch says."""
    candidates: list[Path]
    """Checkpoints to continue from, best first, when this was checked; another run may have written since."""
    is_finished: bool


@dataclass(frozen=True)
class Resume:
    """Where a run goes on."""

    checkpoint: Path | None
    """None = at the beginning."""
    state: TrainState | None
    passed_over: dict[Path, list[str]]
    """What was wrong with newer checkpoints."""
    branch: Branch | None = None
    """Whose checkpoint it is, if it is a parent's."""

    @property
    def progress(self) -> Progress:
        return self.state.progress if self.state else Progress(step=0)


def take_lease(run: Path, launch: Launch) -> Lease:
    """Return the lease of a run directory, which is made if there is none. All ranks call this and end alike.

    Raises CheckpointError naming the owner if another run writes there.
    """
    number = from_first_rank(partial(claim, run, myself()))
    lease = Lease(run, number)
    if launch.rank == 0:
        lease.hold()
    return lease


def check_start(
    recipe: Recipe, resume: str, launch: Launch, *, allow_unfinished: bool = False, asked_branch: str | None = None
) -> Start:
    """Check everything that a user can have wrong; nothing is written. Raises CmbertError."""
    deepspeed_config = resolve_deepspeed(recipe, launch.world_size)
    if fewer := describe_micro_batch(recipe.train, launch.world_size):
        logger.info("%s", fewer)
    check_wandb(recipe.train.wandb_project)
    tokenizer = load_tokenizer(recipe.data.tokenizer, vocab_size=recipe.model.vocab_size)
    reader = open_reader(
        recipe.data,
        recipe.mask,
        tokenizer,
        recipe.train.seed,
        rows_per_step=recipe.train.rows_per_step,
        plan_folder=Path(recipe.run_directory) / PLAN_FOLDER,
        prove=False,
    )
    for source in reader.blend.sources:
        source.shards.recall_proof(Path(recipe.run_directory) / PLAN_FOLDER)
    schedule = Schedule.of(recipe)
    num_rows = schedule.rows_before(schedule.num_steps)
    branch = find_branch(recipe, asked_branch)
    candidates = find_resume(recipe, resume, branch)
    states = readable_states(candidates)
    if branch and branch.checkpoint in candidates:
        states = {branch.checkpoint: state_in_branch(recipe, branch, reader.blend)}
    for path, state in states.items():
        check_fits(path, state, tokenizer, reader)
        if (kind := recipe.optimizer.kind) != (state.optimizer_kind or kind):
            raise CheckpointError(
                f'{path}: written with optimizer.kind = "{state.optimizer_kind}", and the recipe says "{kind}", which '
                "keeps other states; set it back, or start a run from these weights by train.init_from"
            )
        stage = zero_stage(deepspeed_config, Path(recipe.train.deepspeed))
        if state.zero_stage != stage:
            raise CheckpointError(
                f"{path}: written under ZeRO {state.zero_stage}, and {recipe.train.deepspeed} says {stage}; set it back"
            )
    check_epochs(reader.blend, recipe.data, num_rows)
    if not candidates:
        check_starting_weights(recipe, allow_unfinished=allow_unfinished)
    check_host_memory(recipe, deepspeed_config, launch)
    heldout = open_heldout(recipe, tokenizer, launch)
    prepare_kernels(recipe.kernels, select_device(launch), getattr(torch, activation_dtype(deepspeed_config)))
    for line in describe_unread(reader.blend, recipe.data, num_rows):
        logger.info("%s", line)
    newest = next(iter(states.values()), None)
    is_finished = newest is not None and newest.step >= schedule.num_steps
    return Start(schedule, deepspeed_config, tokenizer, reader, heldout, resume, asked_branch, candidates, is_finished)


def check_host_memory(recipe: Recipe, deepspeed_config: dict[str, Any], launch: Launch) -> None:
    """Raise ConfigError when training on a CPU cannot fit; the system would kill it. `cmbert plan` knows GPUs.

    Counted is the least that one process holds: its part of the states, and a micro-batch or the step's gradients.
    """
    device = select_device(launch)
    if device.type != "cpu":
        return
    value_bytes = activation_bytes(deepspeed_config)
    total = count_parameters(recipe.model).total
    part = total / launch.world_size
    is_divided = deepspeed_config["zero_optimization"]["stage"] == 3
    states = value_bytes * (part if is_divided else total)
    states += optimizer_bytes(recipe.model, recipe.optimizer) / launch.world_size
    rows = deepspeed_config["train_micro_batch_size_per_gpu"]
    tokens = rows * recipe.data.context_tokens
    num_masked = tokens * recipe.mask.highest_rate
    held = estimate_activations(recipe.model, recipe.kernels, tokens, num_masked, value_bytes)
    needed = states + max(held.kept + held.logits, (value_bytes + FP32_BYTES) * part)
    remedy = f"lower train.micro_batch_rows, of which {rows} are taken, or train a smaller model"
    require_memory(f"training {total / 1e6:,.0f}M parameters", needed, device, remedy)


def find_beginning(recipe: Recipe, start: Start, launch: Launch) -> Resume:
    """Return where the run goes on or begins, now that nobody else writes there; a branch keeps in mind of what.

    All ranks call this. Raises CmbertError.
    """
    branch = from_first_rank(partial(find_branch, recipe, start.branch))
    candidates = from_first_rank(partial(find_resume, recipe, start.resume, branch))
    if branch is None or branch.checkpoint not in candidates:
        return choose_checkpoint(candidates, launch)
    resume = choose_checkpoint(candidates, launch, "branch from another step, or restore it from a copy")
    from_first_rank(partial(keep_branch, Path(recipe.run_directory), branch))
    return replace(resume, state=state_in_branch(recipe, branch, start.reader.blend), branch=branch)


def prove_data(recipe: Recipe, start: Start, resume: Resume, launch: Launch) -> None:
    """Read the tokens of Megatron pairs once in a run's life, all ranks together; our own sets need no proof.

    All ranks call this. Raises ShardError for a foreign id, CheckpointError when `resume` was made with other tokens.
    """
    crew = Crew(launch.rank, launch.world_size, gather_from_ranks)
    for source in start.reader.blend.sources:
        prove_ids(source.shards, start.tokenizer, Path(recipe.run_directory) / PLAN_FOLDER, crew)
    if resume.checkpoint and resume.state:
        check_fits(resume.checkpoint, resume.state, start.tokenizer, start.reader)


def collective_timeout(recipe: Recipe) -> timedelta:
    """Return how long a collective may wait: longer than the watchdog, which knows who hangs, and where."""
    seconds = recipe.guards.hang_seconds
    return timedelta(seconds=max(HANG_MARGIN * seconds, 600)) if seconds else timedelta(days=7)


def choose_checkpoint(
    candidates: list[Path], launch: Launch, remedy: str = "no other checkpoint is whole: restore one from a copy"
) -> Resume:
    """Return the first checkpoint whose files are all whole. Every rank proves its share of them; all ranks call this.

    Raises CheckpointError when there are checkpoints and none is whole: training from the beginning would hide that;
    OSError when one cannot be read for a reason that may pass.
    """
    passed_over: dict[Path, list[str]] = {}
    for path in candidates:
        found, errors = zip(*gather_from_ranks(_try_files(path, launch)), strict=True)
        if error := next(filter(None, errors), None):
            raise error
        damaged = list(dict.fromkeys(line for lines in found for line in lines))
        if not damaged:
            return Resume(path, read_state(path), passed_over)
        passed_over[path] = damaged
    if candidates:
        raise CheckpointError(f"{passed_over[candidates[0]][0]}; {remedy}")
    return Resume(None, None, {})


def _try_files(checkpoint: Path, launch: Launch) -> tuple[list[str], OSError | None]:
    """Return what is wrong with this rank's share of a checkpoint, and what kept it from knowing."""
    try:
        return damaged_files(checkpoint, launch.rank, launch.world_size), None
    except OSError as error:
        return [], error.with_traceback(None)


def skip_once(progress: Progress, skip_steps: tuple[int, int] | None, schedule: Schedule) -> Progress:
    """Return `progress` with the rows of --skip-steps skipped, and the steps noted as said.

    What was said before is done: a job that is requeued says it in each life. Raises ConfigError for steps done.
    """
    if skip_steps is None:
        return progress
    if skip_steps in progress.skipped_steps:
        logger.info("--skip-steps %d:%d: asked before in this run, and done then", *skip_steps)
        return progress
    return replace(skip(progress, skip_steps, schedule), skipped_steps=(*progress.skipped_steps, skip_steps))


def skip(progress: Progress, steps: tuple[int, int], schedule: Schedule) -> Progress:
    """Add the rows of steps [first, last) to those that were skipped before. Raises ConfigError for steps done."""
    first, last = steps
    if not progress.step <= first < last:
        raise ConfigError(
            f"--skip-steps {first}:{last}: must name steps still to do, {progress.step} or later, first:last"
        )
    rows = tuple(data_row(schedule.rows_before(step), progress.skipped_rows) for step in steps)
    return replace(progress, skipped_rows=merge_ranges([*progress.skipped_rows, (rows[0], rows[1])]))


def open_engine(recipe: Recipe, start: Start, resume: Resume, launch: Launch) -> Any:
    """Build the model on this rank's device and restore what is there. All ranks call this."""
    model = MaskedLanguageModel(recipe.model, recipe.kernels) if resume.checkpoint else starting_model(recipe)
    model = model.to(select_device(launch))
    engine = build_engine(model, build_optimizer(model, recipe.optimizer), start.deepspeed_config)
    if resume.checkpoint:
        restore(engine, resume, launch, Path(recipe.run_directory))
    return engine


def restore(engine: Any, resume: Resume, launch: Launch, run: Path) -> None:
    """Load a checkpoint of any number of ranks into `engine` of `run`. All ranks call this."""
    assert resume.checkpoint is not None
    assert resume.state is not None
    if resume.state.world_size == launch.world_size:
        load_engine(engine, resume.checkpoint)
        return
    folder = run / CHECKPOINTS if resume.branch else resume.checkpoint.parent  # in a parent's run nobody but it writes
    universal = folder / f".{resume.checkpoint.name}{UNIVERSAL_SUFFIX}"
    problem = on_first_rank(partial(_convert, resume.checkpoint, universal))
    if problem:
        raise (TransientError if may_pass(problem) else CheckpointError)(
            f"{resume.checkpoint}: cannot be converted for {launch.world_size} ranks: {describe(problem)}; "
            f"{advice(may_pass(problem))}"
        )
    load_engine(engine, universal, universal=True)


def _convert(checkpoint: Path, universal: Path) -> None:
    if not universal.is_dir():
        logger.info("converting %s for another number of ranks", checkpoint)
        with building(universal) as aside:
            convert_to_universal(checkpoint, aside)
