"""What a recipe costs, before it runs: parameters, compute, memory, steps, disk, time; and what cannot work.

Arithmetic only: torch is imported just where a shard set or a first stage that exists is looked at.
"""

from dataclasses import dataclass

from cmbert.config.batch import describe_micro_batch
from cmbert.config.deepspeed import activation_dtype, resolve_deepspeed
from cmbert.config.parameters import Parameters, count_parameters
from cmbert.config.schema import MaskConfig, Recipe
from cmbert.errors import ConfigError
from cmbert.model.cost import FlopsPerToken, count_flops, optimizer_bytes
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.data import DataCost, PlannedSource, cost_of_data, look_at_data
from cmbert.plan.failures import Failures, make_failures
from cmbert.plan.machine import Machine, Measured
from cmbert.plan.memory import STAGES, Memory, host_memory, memory_table, peak_memory
from cmbert.plan.muon import MuonCost, make_muon
from cmbert.plan.refusals import check_memory
from cmbert.plan.scaling import Scaling, make_scaling, scale_point
from cmbert.schedule import Schedule

SMALL_GPU_HOURS = 1.0  # of an H100: what takes less is planned on one screen (ours)
SCHEDULE_POINTS = 200  # of the drawn curves; a tenth as many lines are printed


@dataclass(frozen=True)
class SchedulePoint:
    """Learning rate and mask rate at one point of the stage."""

    percent: float
    tokens: int
    learning_rate: float
    mask_rate: float


@dataclass(frozen=True)
class Plan:
    """Everything `cmbert plan` knows about one recipe on `num_gpus` GPUs."""

    run_directory: str
    num_gpus: int
    zero_stage: int
    assumptions: Assumptions
    parameters: Parameters
    flops_per_token: FlopsPerToken
    memory: tuple[Memory, ...]
    """The recipe's setting at ZeRO 1, 2 and 3."""
    memory_table: tuple[Memory, ...]
    """Every ZeRO stage, checkpointed share and micro-batch near the recipe's."""
    context_tokens: int
    total_tokens: int
    step_tokens: int
    num_steps: int
    rows_per_step: int
    micro_batch_rows: int
    activation_checkpoint_fraction: float
    accumulation: int
    """Micro-batches of one GPU in a step."""
    batch_ramp: tuple[tuple[int, int, int], ...]
    """First step, tokens seen before it and rows of each size of a step; one entry without a ramp."""
    sources: tuple[PlannedSource, ...]
    data: DataCost
    checkpoint_bytes: int
    checkpoints_bytes: int
    """Of all that are kept, and of the one being written; those of keep_every_tokens, too."""
    training_flops: float
    gpu_hours: float
    """Of computation at the assumed rate: not a measurement, and not for CPUs."""
    hours: float
    """With communication."""
    muon: MuonCost | None
    """What Muon adds to a step; None for another optimizer."""
    scaling: Scaling
    failures: Failures
    schedule: tuple[SchedulePoint, ...]
    notes: tuple[str, ...]
    host_bytes: int
    """Of one process on a CPU, estimated."""
    machine: Machine | None = None
    """Where the plan was made; None if that does not matter to it."""
    measured: Measured | None = None
    is_small: bool = False
    """Whether it is for one screen: `is_small_run`."""


def make_plan(recipe: Recipe, num_gpus: int, assumptions: Assumptions | None = None) -> Plan:
    """Work out what `recipe` costs on `num_gpus` GPUs (CPU processes where there is no GPU).

    Raises ConfigError or ShardError when it cannot work: the batch does not divide, it does not fit the GPU's memory,
    the vocabulary is not the tokenizer's, a shard set belongs to another tokenizer, is torn, or would be repeated too
    often.
    """
    assumptions = assumptions or Assumptions()
    if num_gpus < 1:
        raise ConfigError(f"--gpus: {num_gpus} must be at least 1")
    deepspeed = resolve_deepspeed(recipe, num_gpus)
    check_memory(recipe, deepspeed, num_gpus, assumptions)
    sources, notes = look_at_data(recipe)
    fewer = describe_micro_batch(recipe.train, num_gpus)
    train, context = recipe.train, recipe.data.context_tokens
    parameters = count_parameters(recipe.model)
    flops = count_flops(recipe.model, context, mean_mask_rate(recipe.mask, train.total_tokens))
    zero_stage = deepspeed["zero_optimization"]["stage"]
    schedule = Schedule.of(recipe)
    training_flops = flops.training * schedule.tokens_before(schedule.num_steps)
    micro = deepspeed["train_micro_batch_size_per_gpu"]
    here = scale_point(recipe, deepspeed, training_flops, parameters.total, num_gpus, micro, assumptions)
    checkpoint = checkpoint_bytes(recipe, zero_stage, activation_dtype(deepspeed))
    step_flops = flops.training * train.rows_per_step * context
    step_seconds = here.compute_seconds + here.communication_seconds
    kept_for_good = train.total_tokens // train.keep_every_tokens if train.keep_every_tokens else 0
    return Plan(
        run_directory=recipe.run_directory,
        num_gpus=num_gpus,
        zero_stage=zero_stage,
        assumptions=assumptions,
        parameters=parameters,
        flops_per_token=flops,
        memory=tuple(peak_memory(recipe, deepspeed, stage, num_gpus) for stage in STAGES),
        memory_table=memory_table(recipe, deepspeed, num_gpus),
        context_tokens=context,
        total_tokens=train.total_tokens,
        step_tokens=train.rows_per_step * context,
        num_steps=schedule.num_steps,
        rows_per_step=train.rows_per_step,
        micro_batch_rows=micro,
        activation_checkpoint_fraction=recipe.kernels.activation_checkpoint_fraction,
        accumulation=deepspeed["gradient_accumulation_steps"],
        batch_ramp=_list_ramp(schedule),
        sources=sources,
        data=cost_of_data(recipe, sources, assumptions),
        checkpoint_bytes=checkpoint,
        checkpoints_bytes=checkpoint * (train.keep_checkpoints + 1 + kept_for_good),
        training_flops=training_flops,
        gpu_hours=training_flops / (assumptions.mfu * assumptions.peak_flops) / 3600,
        hours=here.hours,
        muon=make_muon(recipe, num_gpus, step_flops, step_seconds, assumptions),
        scaling=make_scaling(recipe, deepspeed, training_flops, parameters.total, assumptions),
        failures=make_failures(recipe, num_gpus, here.hours, assumptions),
        schedule=_sample_schedule(schedule),
        notes=(fewer, *notes) if fewer else notes,
        host_bytes=host_memory(recipe, deepspeed, num_gpus),
    )


def is_small_run(plan: Plan, *, is_cluster_asked: bool) -> bool:
    """Return whether one screen says all: the plan is for this machine, or the stage is under SMALL_GPU_HOURS.

    is_cluster_asked: a number of GPUs was named.
    """
    return not is_cluster_asked or plan.gpu_hours < SMALL_GPU_HOURS


def checkpoint_bytes(recipe: Recipe, zero_stage: int, dtype: str) -> int:
    """Return the bytes of one checkpoint: fp32 weights and moments, and the weights in `dtype` but at ZeRO 3."""
    weight = 4 if dtype == "float32" else 2
    weights = weight * count_parameters(recipe.model).total if zero_stage < 3 else 0
    return optimizer_bytes(recipe.model, recipe.optimizer) + weights


def mean_mask_rate(mask: MaskConfig, total_tokens: int) -> float:
    """Return the mean of `mask_rate` over the stage: two straight lines, so the middle of each, weighted."""
    warm_up = mask.warmup_tokens / total_tokens
    return warm_up * (mask.start_rate + mask.peak_rate) / 2 + (1 - warm_up) * (mask.peak_rate + mask.end_rate) / 2


def _list_ramp(schedule: Schedule) -> tuple[tuple[int, int, int], ...]:
    stages = [stage for stage in schedule.ramp if stage.first_step < schedule.num_steps]
    return tuple((stage.first_step, schedule.tokens_before(stage.first_step), stage.step_rows) for stage in stages)


def _sample_schedule(schedule: Schedule) -> tuple[SchedulePoint, ...]:
    total = schedule.total_tokens
    places = [total * point // SCHEDULE_POINTS for point in range(SCHEDULE_POINTS + 1)]
    return tuple(
        SchedulePoint(
            percent=100 * point / SCHEDULE_POINTS,
            tokens=tokens,
            learning_rate=schedule.learning_rate_at(tokens),
            mask_rate=schedule.mask_rate_at(tokens),
        )
        for point, tokens in enumerate(places)
    )
