"""What cannot work on these GPUs, each in one line with the nearest setting that does."""

from typing import Any

from cmbert.config.batch import possible_micro_batches, taken_micro_batch
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.memory import largest_micro_batch, peak_memory, usable_bytes, with_setting

TRIED_SHARES = (0.25, 0.5, 0.75, 1.0)  # of checkpointed layers, in turn


def check_memory(recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int, assumptions: Assumptions) -> None:
    """Raise ConfigError unless the recipe as it stands fits a GPU; name what does."""
    own = peak_memory(recipe, deepspeed, deepspeed["zero_optimization"]["stage"], num_gpus)
    usable = usable_bytes(assumptions)
    if own.total_bytes <= usable:
        return
    raise ConfigError(
        f"train.micro_batch_rows: {own.micro_batch_rows} rows need {own.total_bytes / 1e9:,.1f} GB on each of "
        f"{num_gpus} GPUs, and {usable / 1e9:,.1f} GB are there ({assumptions.usable_share:.0%} of --gpu-memory-gb "
        f"{assumptions.gpu_memory_gb:g}); {_nearest(recipe, deepspeed, num_gpus, usable)}"
    )


def _nearest(recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int, usable: float) -> str:
    """Name the first that fits: a smaller micro-batch, checkpointed layers, another ZeRO stage, more GPUs."""
    stage, share = deepspeed["zero_optimization"]["stage"], recipe.kernels.activation_checkpoint_fraction
    taken = taken_micro_batch(recipe.train, num_gpus)

    def fits(zero_stage: int, gpus: int) -> bool:
        return peak_memory(with_setting(recipe, 1, 1.0), deepspeed, zero_stage, gpus).total_bytes <= usable

    for checkpointed in (share, *(tried for tried in TRIED_SHARES if tried > share)):
        rows = largest_micro_batch(recipe, deepspeed, num_gpus, checkpointed, usable)
        settings = [f"kernels.activation_checkpoint_fraction = {checkpointed:g}"] if checkpointed > share else []
        settings += [f"train.micro_batch_rows = {rows}"] if rows < taken else []
        if rows:
            return f"nearest that fits: {' and '.join(settings)}"
    smallest = "train.micro_batch_rows = 1, kernels.activation_checkpoint_fraction = 1"
    for zero_stage in range(stage + 1, 4):
        if fits(zero_stage, num_gpus):
            compiled = ", kernels.compile = false" if zero_stage == 3 and recipe.kernels.compile else ""
            return f"nearest that fits: ZeRO {zero_stage} (train.deepspeed), {smallest}{compiled}"
    for gpus in range(num_gpus + 1, recipe.train.rows_per_step + 1):
        for zero_stage in range(stage, 4):
            if possible_micro_batches(recipe.train, gpus) and fits(zero_stage, gpus):
                compiled = ", kernels.compile = false" if zero_stage == 3 and recipe.kernels.compile else ""
                return f"nearest that fits: {gpus} GPUs with ZeRO {zero_stage} (train.deepspeed), {smallest}{compiled}"
    return "no setting of this model fits: larger GPUs or a smaller model"
