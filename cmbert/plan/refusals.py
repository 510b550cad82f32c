"""What cannot work on these GPUs, each in one line with the nearest setting that does."""

from typing import Any

from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.memory import Memory, peak_memory, possible_micro_batches, usable_bytes, with_setting

TRIED_SHARES = (0.25, 0.5, 0.75, 1.0)  # of checkpointed layers, in turn


def check_batch(recipe: Recipe, num_gpus: int) -> None:
    """Raise ConfigError unless the step's micro-batches divide over the GPUs; name the nearest that work."""
    if num_gpus < 1:
        raise ConfigError(f"--gpus: {num_gpus} must be at least 1")
    rows, micro_rows = recipe.train.rows_per_step, recipe.train.micro_batch_rows
    num_micro = rows // micro_rows
    if num_micro % num_gpus == 0:
        return
    fitting = [count for count in range(1, num_micro + 1) if num_micro % count == 0]
    nearest = [max(c for c in fitting if c < num_gpus), *[c for c in fitting if c > num_gpus][:1]]
    remedy = f"nearest that work: {' or '.join(map(str, nearest))} GPUs"
    if rows % num_gpus == 0:
        smaller = max(size for size in range(1, micro_rows + 1) if rows // num_gpus % size == 0)
        remedy += f", or train.micro_batch_rows = {smaller}"
    raise ConfigError(
        f"train.rows_per_step: {rows} rows are {num_micro} micro-batches of {micro_rows} rows, which do not divide "
        f"over {num_gpus} GPUs; {remedy}"
    )


def check_memory(recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int, assumptions: Assumptions) -> Memory:
    """Return the memory of the recipe as it stands. Raises ConfigError when it does not fit; names what does."""
    own = peak_memory(recipe, deepspeed, deepspeed["zero_optimization"]["stage"], num_gpus)
    usable = usable_bytes(assumptions)
    if own.total_bytes <= usable:
        return own
    raise ConfigError(
        f"train.micro_batch_rows: {own.micro_batch_rows} rows need {own.total_bytes / 1e9:,.1f} GB on each of "
        f"{num_gpus} GPUs, and {usable / 1e9:,.1f} GB are there ({assumptions.usable_share:.0%} of --gpu-memory-gb "
        f"{assumptions.gpu_memory_gb:g}); {_nearest(recipe, deepspeed, num_gpus, usable)}"
    )


def _nearest(recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int, usable: float) -> str:
    """Name the first that fits: a smaller micro-batch, checkpointed layers, another ZeRO stage, more GPUs."""
    stage, share = deepspeed["zero_optimization"]["stage"], recipe.kernels.checkpointed_share
    own = recipe.train.micro_batch_rows

    def fits(micro: int, checkpointed: float, zero_stage: int = stage, gpus: int = num_gpus) -> bool:
        found = peak_memory(with_setting(recipe, micro, checkpointed), deepspeed, zero_stage, gpus)
        return found.total_bytes <= usable

    sizes = [rows for rows in reversed(possible_micro_batches(recipe, num_gpus)) if rows <= own]
    for rows in sizes:
        if fits(rows, share):
            return f"nearest that fits: train.micro_batch_rows = {rows}"
    for checkpointed in TRIED_SHARES:
        for rows in sizes:
            if checkpointed > share and fits(rows, checkpointed):
                smaller = f" and train.micro_batch_rows = {rows}" if rows < own else ""
                return f"nearest that fits: kernels.checkpointed_share = {checkpointed:g}{smaller}"
    smallest = "train.micro_batch_rows = 1, kernels.checkpointed_share = 1"
    for zero_stage in range(stage + 1, 4):
        if fits(1, 1.0, zero_stage):
            compiled = ", kernels.compile = false" if zero_stage == 3 and recipe.kernels.compile else ""
            return f"nearest that fits: ZeRO {zero_stage} (train.deepspeed), {smallest}{compiled}"
    for gpus in range(num_gpus + 1, recipe.train.rows_per_step + 1):
        for zero_stage in range(stage, 4):
            if possible_micro_batches(recipe, gpus) and fits(1, 1.0, zero_stage, gpus):
                compiled = ", kernels.compile = false" if zero_stage == 3 and recipe.kernels.compile else ""
                return f"nearest that fits: {gpus} GPUs with ZeRO {zero_stage} (train.deepspeed), {smallest}{compiled}"
    return "no setting of this model fits: larger GPUs or a smaller model"
