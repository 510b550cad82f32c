"""Seconds of a step on more GPUs: computation, which shrinks, and communication, which does not. Arithmetic.

No overlap: at ZeRO 1 DeepSpeed reduces gradients after the last micro-batch and gathers weights after the optimizer;
where it could overlap (ZeRO 2 and 3) we assume the worse.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from cmbert.config.deepspeed import activation_bytes
from cmbert.config.schema import Recipe
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.memory import REDUCE_BUCKET, largest_micro_batch, usable_bytes
from cmbert.plan.muon import exchange_seconds, orthogonal_seconds
from cmbert.schedule import Schedule

TARGETS = tuple(8 * 2**power for power in range(8))  # GPUs: 8 to 1,024
GOOD, HALF = 0.9, 0.5  # efficiencies that a plan names


@dataclass(frozen=True)
class ScalePoint:
    """The stage on `num_gpus` GPUs, if computation runs at the assumed rate."""

    num_gpus: int
    micro_batch_rows: int
    accumulation: int
    compute_seconds: float
    """Of one step."""
    communication_seconds: float
    """Of one step."""
    hours: float
    """Of the stage, without failures, evaluations and checkpoints."""
    gpu_hours: float
    efficiency: float
    """GPU-hours on the fewest GPUs of the table over those here."""


@dataclass(frozen=True)
class Scaling:
    """The table, and where it ends."""

    points: tuple[ScalePoint, ...]
    limit: str
    """One sentence: where efficiency falls, and why."""


@dataclass(frozen=True)
class Volumes:
    """What every GPU takes part in during a step, as bytes of the whole message, and how many messages that is."""

    all_reduced: float
    gathered: float
    """All-gathered or reduce-scattered: each moves the message once, an all-reduce twice."""
    messages: int
    """In which the above is cut; each goes once around, an all-reduce twice."""


def step_volumes(num_parameters: int, deepspeed: dict[str, Any], zero_stage: int, accumulation: int) -> Volumes:
    """Return the communication of a step of `accumulation` micro-batches.

    ZeRO 1: DeepSpeed 0.19 all-reduces the gradients once, in its bucket (`use_multi_rank_bucket_allreduce`), and
    gathers the weights once. ZeRO 2: the same, but the gradients after every micro-batch. ZeRO 3: weights gathered in
    every forward and every backward pass, gradients reduce-scattered (arXiv 1910.02054, section 7).
    """
    size = num_parameters * activation_bytes(deepspeed)
    buckets = math.ceil(num_parameters / deepspeed["zero_optimization"].get("reduce_bucket_size", REDUCE_BUCKET))
    if zero_stage == 3:
        return Volumes(0.0, 3.0 * size * accumulation, 3 * buckets * accumulation)
    times = accumulation if zero_stage == 2 else 1
    return Volumes(float(size * times), float(size), 2 * buckets * times + 1)


def communication_seconds(volumes: Volumes, num_gpus: int, assumptions: Assumptions) -> float:
    """Return the seconds of `volumes` in rings: inside the nodes by NVLink, then between them, a part per GPU.

    A message that is gathered or reduce-scattered sends (n - 1) / n of itself through every GPU's NVLink in a node of
    n, and (m - 1) / m of its n-th part through every GPU's network port between m nodes; an all-reduce both twice.
    """
    inside = min(num_gpus, assumptions.node_gpus)
    nodes = math.ceil(num_gpus / assumptions.node_gpus)
    size = 2 * volumes.all_reduced + volumes.gathered
    seconds = size * (inside - 1) / inside / (assumptions.nvlink_gbytes * 1e9)
    seconds += size / inside * (nodes - 1) / nodes / (assumptions.bandwidth_gbits * 1e9 / 8)
    return seconds + volumes.messages * (inside - 1 + nodes - 1) * assumptions.hop_microseconds * 1e-6


def make_scaling(recipe: Recipe, deepspeed: dict[str, Any], training_flops: float, parameters: int,
                 assumptions: Assumptions) -> Scaling:  # fmt: skip
    """Return the scaling of `recipe` on whole nodes that its batch divides over, those nearest to TARGETS.

    With the recipe's micro-batch, or the next smaller one that divides and fits.
    """
    node, rows = assumptions.node_gpus, recipe.train.rows_per_step
    share, usable = recipe.kernels.activation_checkpoint_fraction, usable_bytes(assumptions)
    points = []
    for count in range(node, rows + 1, node):
        micro = largest_micro_batch(recipe, deepspeed, count, share, usable)
        if micro:
            points.append(scale_point(recipe, deepspeed, training_flops, parameters, count, micro, assumptions))
    if not points:
        return Scaling((), f"the batch of {rows:,} rows divides over no whole node of {node} GPUs")
    everywhere = [replace(point, efficiency=points[0].gpu_hours / point.gpu_hours) for point in points]
    nearest = [min(everywhere, key=lambda point: abs(math.log(point.num_gpus / target))) for target in TARGETS]
    return Scaling(
        tuple(point for point in everywhere if point in nearest),
        _describe_limit(everywhere, rows, deepspeed["zero_optimization"]["stage"]),
    )


def scale_point(recipe: Recipe, deepspeed: dict[str, Any], training_flops: float, parameters: int, num_gpus: int,
                micro_batch_rows: int, assumptions: Assumptions) -> ScalePoint:  # fmt: skip
    """Return the stage on `num_gpus` GPUs with this micro-batch; its efficiency is that of the only point."""
    accumulation = recipe.train.rows_per_step // (micro_batch_rows * num_gpus)
    steps = Schedule.of(recipe).num_steps
    compute = training_flops / steps / (assumptions.mfu * assumptions.peak_flops) / num_gpus
    volumes = step_volumes(parameters, deepspeed, deepspeed["zero_optimization"]["stage"], accumulation)
    communication = communication_seconds(volumes, num_gpus, assumptions)
    compute += orthogonal_seconds(recipe, num_gpus, assumptions)
    communication += exchange_seconds(recipe, num_gpus, assumptions)
    hours = steps * (compute + communication) / 3600
    return ScalePoint(
        num_gpus, micro_batch_rows, accumulation, compute, communication, hours, hours * num_gpus, efficiency=1.0
    )


def _describe_limit(points: list[ScalePoint], rows: int, zero_stage: int) -> str:
    """Say in one sentence where efficiency falls below GOOD and HALF, and which counts the batch allows at all."""
    parts = []
    for share in (GOOD, HALF):
        below = next((point for point in points if point.efficiency < share), None)
        if below is not None:
            each = below.communication_seconds / (below.compute_seconds + below.communication_seconds)
            parts.append(
                f"below {share:.0%} of {points[0].num_gpus} GPUs' efficiency from {below.num_gpus:,} GPUs on, where "
                f"communication takes {each:.0%} of a step"
            )
    most = points[-1].num_gpus
    end = f"beyond {most:,} GPUs the batch of {rows:,} rows no longer divides over whole nodes"
    return f"ZeRO {zero_stage} falls " + " and ".join(parts) + f"; {end}" if parts else f"ZeRO {zero_stage}: {end}"
