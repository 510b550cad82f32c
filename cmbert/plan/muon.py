"""What Muon adds to a step: matrices travel to one GPU each, are orthogonalised there and travel back. Arithmetic."""

import heapq
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cmbert.config.parameters import count_muon_parameters, muon_blocks
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.model.cost import BF16_BYTES, FP32_BYTES, newton_schulz_flops
from cmbert.plan.assumptions import Assumptions

EXCHANGES = 2  # all-to-alls of a step: fragments to the owners, updates back
COPIES = 4  # bf16 tensors as large as the matrices of one shape: them, and three temporaries


class Share(NamedTuple):
    """What one GPU owns."""

    flops: int
    """Of one step's Newton-Schulz iterations."""
    elements: int
    most_of_a_shape: int
    """Elements of the shape that it owns most of, which are orthogonalised together."""


@dataclass(frozen=True)
class MuonCost:
    """Of one step."""

    parameters: int
    """That Muon moves; all others stay with AdamW."""
    num_blocks: int
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
def share_blocks(model: ModelConfig, num_gpus: int) -> tuple[Share, ...]:
    """Return what each GPU owns that owns any: the matrices in order of their operations, each to whom has least."""
    sized = [(newton_schulz_flops(*shape), shape, count) for shape, count in muon_blocks(model).items()]
    owned = [(0, gpu) for gpu in range(num_gpus)]
    held: dict[int, dict[tuple[int, int], int]] = {}
    for flops, shape, count in sorted(sized, reverse=True):
        for _ in range(count):
            before, gpu = owned[0]
            heapq.heapreplace(owned, (before + flops, gpu))
            elements = held.setdefault(gpu, {})
            elements[shape] = elements.get(shape, 0) + math.prod(shape)
    flops_of = {gpu: flops for flops, gpu in owned}
    return tuple(Share(flops_of[gpu], sum(sizes.values()), max(sizes.values())) for gpu, sizes in held.items())


def muon_buffer_bytes(recipe: Recipe, num_gpus: int, *, whole_update: bool) -> float:
    """Return what Muon holds in a step beside its states, on the GPU that holds most; 0 for other optimizers.

    What is sent and received in bf16, the matrices of one shape with their temporaries and, if `whole_update`, an fp32
    update of this GPU's part.
    """
    part = count_muon_parameters(recipe.model, recipe.optimizer) / num_gpus
    if not part:
        return 0.0
    shares = share_blocks(recipe.model, num_gpus)
    owned = max(share.elements + COPIES * share.most_of_a_shape for share in shares)
    return BF16_BYTES * (part + owned) + (FP32_BYTES * part if whole_update else 0.0)


def exchanged_bytes(recipe: Recipe, num_gpus: int) -> float:
    """Return what the GPU that sends most sends in a step: its fragments to others, then updates it made for them."""
    part = count_muon_parameters(recipe.model, recipe.optimizer) / num_gpus
    owned = max(share.elements for share in share_blocks(recipe.model, num_gpus)) if part else 0
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
    size = BF16_BYTES * max(part, *(share.elements for share in share_blocks(recipe.model, num_gpus)))
    seconds = size * (inside - 1) / num_gpus / (assumptions.nvlink_gbytes * 1e9)
    seconds += size * (num_gpus - inside) / num_gpus / (assumptions.bandwidth_gbits * 1e9 / 8)
    return EXCHANGES * (seconds + (inside - 1 + nodes - 1) * assumptions.hop_microseconds * 1e-6)


def orthogonal_seconds(recipe: Recipe, num_gpus: int, assumptions: Assumptions) -> float:
    """Return the seconds in which the GPU that owns most has orthogonalised its matrices; 0 for other optimizers."""
    if recipe.optimizer.kind != "muon":
        return 0.0
    most = max(share.flops for share in share_blocks(recipe.model, num_gpus))
    return most / (assumptions.mfu * assumptions.peak_flops)


def make_muon(recipe: Recipe, num_gpus: int, step_flops: float, step_seconds: float,
              assumptions: Assumptions) -> MuonCost | None:  # fmt: skip
    """Return what Muon adds to a step of the full batch, or None for another optimizer.

    step_flops: of the model, all GPUs together. step_seconds: with Muon.
    """
    if recipe.optimizer.kind != "muon":
        return None
    shares = share_blocks(recipe.model, num_gpus)
    flops = sum(share.flops for share in shares)
    compute = orthogonal_seconds(recipe, num_gpus, assumptions)
    exchange = exchange_seconds(recipe, num_gpus, assumptions)
    return MuonCost(
        parameters=count_muon_parameters(recipe.model, recipe.optimizer),
        num_blocks=sum(muon_blocks(recipe.model).values()),
        num_owners=len(shares),
        flops=flops,
        flops_share=flops / (step_flops + flops),
        slowest_flops=max(share.flops for share in shares),
        exchanged_bytes=exchanged_bytes(recipe, num_gpus),
        compute_seconds=compute,
        exchange_seconds=exchange,
        step_share=(compute + exchange) / step_seconds,
    )
