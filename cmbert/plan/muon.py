"""What Muon adds to a step: matrices travel to one GPU each, are orthogonalised there and travel back. Arithmetic."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cmbert.config.parameters import count_muon_parameters, muon_matrices
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.model.cost import BF16_BYTES, NEWTON_SCHULZ_ELEMENTS, newton_schulz_flops, share_out
from cmbert.plan.assumptions import Assumptions

EXCHANGES = 2  # all-to-alls of a step: fragments to the owners, updates back


class Share(NamedTuple):
    """What one GPU owns."""

    flops: int
    """Of one step's Newton-Schulz iterations."""
    elements: int
    scratch_elements: int
    """Of what Newton-Schulz makes of the matrices that it takes at once: two as large as they, two Gram matrices."""


@dataclass(frozen=True)
class MuonCost:
    """Of one step."""

    parameters: int
    """That Muon moves; all others stay with AdamW."""
    num_matrices: int
    """Matrices, each orthogonalised whole by the one GPU that owns it."""
    num_owners: int
    """GPUs that own any."""
    flops: int
    """Of all GPUs together."""
    flops_share: float
    """Of the operations of a step of the full batch."""
    slowest_flops: int
    """Of the GPU that owns most."""
    exchanged_bytes: float
    """Sent by the GPU that sends most, both ways; as many are received."""
    compute_seconds: float
    """Of the slowest, at the assumed rate of training."""
    exchange_seconds: float
    step_share: float
    """Of the seconds of a step, computation and communication."""


@lru_cache(maxsize=4096)  # a table of more GPUs and micro-batches asks for the same again and again
def share_matrices(model: ModelConfig, num_gpus: int) -> tuple[Share, ...]:
    """Return what each GPU owns that owns any, as cmbert.zero.muon shares it out (a test compares them)."""
    matrices = muon_matrices(model)
    cost = {shape: newton_schulz_flops(*shape) for shape in matrices}
    held: dict[int, Counter[tuple[int, int]]] = {}
    for gpu, shape in zip(share_out([cost[shape] for shape in matrices], num_gpus), matrices, strict=True):
        held.setdefault(gpu, Counter())[shape] += 1
    return tuple(
        Share(
            sum(cost[shape] * count for shape, count in shapes.items()),
            sum(math.prod(shape) * count for shape, count in shapes.items()),
            max(_scratch_elements(shape, count) for shape, count in shapes.items()),
        )
        for _, shapes in sorted(held.items())
    )


def _scratch_elements(shape: tuple[int, int], count: int) -> int:
    taken = min(count, max(1, NEWTON_SCHULZ_ELEMENTS // math.prod(shape)))
    return taken * 2 * (math.prod(shape) + min(shape) ** 2)


def muon_buffer_bytes(recipe: Recipe, num_gpus: int) -> float:
    """Return what Muon holds in a step beside states and gradients, on the GPU that holds most; 0 if it is not Muon.

    At one of two moments, all in bf16: its matrices have arrived by GPU and are put together, or are taken apart again;
    or they are made orthogonal. Updates are written over the gradients.
    """
    part = count_muon_parameters(recipe.model, recipe.optimizer) / num_gpus
    if not part:
        return 0.0
    arrived = 1 if num_gpus > 1 else 0  # alone, what is sent is what arrives
    return max(
        max(
            BF16_BYTES * (part + (arrived + 1) * share.elements),
            BF16_BYTES * (share.elements + share.scratch_elements),
        )
        for share in share_matrices(recipe.model, num_gpus)
    )


def exchanged_bytes(recipe: Recipe, num_gpus: int) -> float:
    """Return what the GPU that sends most sends in a step: its fragments to others, then updates it made for them."""
    part = count_muon_parameters(recipe.model, recipe.optimizer) / num_gpus
    owned = max(share.elements for share in share_matrices(recipe.model, num_gpus)) if part else 0
    return BF16_BYTES * (part + owned) * (num_gpus - 1) / num_gpus


def exchange_seconds(recipe: Recipe, num_gpus: int, assumptions: Assumptions) -> float:
    """Return the seconds of both all-to-alls; each waits for the GPU that sends or receives most.

    A GPU's message goes in equal parts to all, by NVLink to those of its node, else by its network port. Each
    all-to-all takes as many hops as a ring (ours).
    """
    part = count_muon_parameters(recipe.model, recipe.optimizer) / num_gpus
    if not part:
        return 0.0
    inside = min(num_gpus, assumptions.node_gpus)
    nodes = math.ceil(num_gpus / assumptions.node_gpus)
    size = BF16_BYTES * max(part, *(share.elements for share in share_matrices(recipe.model, num_gpus)))
    seconds = size * (inside - 1) / num_gpus / (assumptions.nvlink_gbytes * 1e9)
    seconds += size * (num_gpus - inside) / num_gpus / (assumptions.bandwidth_gbits * 1e9 / 8)
    return EXCHANGES * (seconds + (inside - 1 + nodes - 1) * assumptions.hop_microseconds * 1e-6)


def orthogonal_seconds(recipe: Recipe, num_gpus: int, assumptions: Assumptions) -> float:
    """Return the seconds in which the GPU that owns most has orthogonalised its matrices; 0 for other optimizers."""
    if recipe.optimizer.kind != "muon":
        return 0.0
    most = max(share.flops for share in share_matrices(recipe.model, num_gpus))
    return most / (assumptions.mfu * assumptions.peak_flops)


def make_muon(recipe: Recipe, num_gpus: int, step_flops: float, step_seconds: float,
              assumptions: Assumptions) -> MuonCost | None:  # fmt: skip
    """Return what Muon adds to a step of the full batch, or None for another optimizer.

    step_flops: of the model, all GPUs together. step_seconds: with Muon.
    """
    if recipe.optimizer.kind != "muon":
        return None
    shares = share_matrices(recipe.model, num_gpus)
    flops = sum(share.flops for share in shares)
    compute = orthogonal_seconds(recipe, num_gpus, assumptions)
    exchange = exchange_seconds(recipe, num_gpus, assumptions)
    return MuonCost(
        parameters=count_muon_parameters(recipe.model, recipe.optimizer),
        num_matrices=len(muon_matrices(recipe.model)),
        num_owners=len(shares),
        flops=flops,
        flops_share=flops / (step_flops + flops),
        slowest_flops=max(share.flops for share in shares),
        exchanged_bytes=exchanged_bytes(recipe, num_gpus),
        compute_seconds=compute,
        exchange_seconds=exchange,
        step_share=(compute + exchange) / step_seconds,
    )
