"""Bytes that a GPU holds at the peak of a training step, by ZeRO stage. Arithmetic; tests compare it with DeepSpeed's.

The states are partitioned as ZeRO does (arXiv 1910.02054). What else DeepSpeed 0.19 holds was read off its code and
measured on CPU: its bucket of gradients, the flat copies of the optimizer's step, ZeRO 3's gathered weights.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from cmbert.config.batch import possible_micro_batches, taken_micro_batch
from cmbert.config.deepspeed import activation_bytes
from cmbert.config.parameters import count_muon_parameters, count_parameters
from cmbert.config.schema import Recipe
from cmbert.model.cost import FP32_BYTES, cpu_bytes_beside, estimate_activations, optimizer_bytes
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.muon import muon_buffer_bytes

STAGES = (1, 2, 3)
SHARES = (0.0, 0.5, 1.0)  # of the layers, checkpointed, that a plan compares
SMALLER, LARGER = 3, 2  # micro-batches that a plan compares with the recipe's own
CLIP_BYTES = 12  # per parameter of a tensor: StableAdamW's fp32 ratio, and fp64 while it is summed up
LOSS_CHUNK_BYTES = 2 * (128 << 20)  # fp32 logits of a chunk on a GPU (cmbert.model.loss), and as much beside them
CPU_LOSS_CHUNK_BYTES = 2 * (8 << 20)  # the same of a chunk on a CPU
LIBRARIES_BYTES = 550_000_000  # of a training process on a CPU: Python, torch, DeepSpeed (measured, docs/scale.md)
REDUCE_BUCKET, PREFETCH_BUCKET, MAX_LIVE = 500_000_000, 50_000_000, 1_000_000_000  # elements: DeepSpeed's defaults


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU at the fullest moment of a step under one setting."""

    zero_stage: int
    micro_batch_rows: int
    activation_checkpoint_fraction: float
    moment: str
    """When: in the loss, the backward pass, the embedding's, the reduction of gradients or the optimizer's step."""
    weights_bytes: int
    gradients_bytes: int
    """And their fp32 copy in the optimizer's step."""
    optimizer_bytes: int
    activations_bytes: int
    buffers_bytes: int
    """DeepSpeed's bucket, weights gathered by ZeRO 3, the optimizer's and the loss's own tensors."""
    total_bytes: int


def peak_memory(recipe: Recipe, deepspeed: dict[str, Any], zero_stage: int, num_gpus: int) -> Memory:
    """Return what one GPU holds when it holds most. `deepspeed`: the DeepSpeed table; its own stage does not count."""
    return max(memory_by_moment(recipe, deepspeed, zero_stage, num_gpus), key=lambda memory: memory.total_bytes)


def memory_by_moment(
    recipe: Recipe,
    deepspeed: dict[str, Any],
    zero_stage: int,
    num_gpus: int,
    loss_chunk_bytes: int = LOSS_CHUNK_BYTES,
) -> list[Memory]:
    """Return what one GPU holds at each moment of a step that may be the fullest.

    loss_chunk_bytes: of the loss's fp32 logits; on a CPU they are fewer. ZeRO 3 is taken without compilation, which it
    refuses.
    """
    if zero_stage == 3:
        recipe = dataclasses.replace(recipe, kernels=dataclasses.replace(recipe.kernels, compile=False))
    moments = _Step(recipe, deepspeed, zero_stage, num_gpus, loss_chunk_bytes).moments()
    setting = (zero_stage, taken_micro_batch(recipe.train, num_gpus), recipe.kernels.activation_checkpoint_fraction)
    found = []
    for name, parts in moments.items():
        weights, gradients, optimizer, activations, buffers = map(round, parts)
        total = weights + gradients + optimizer + activations + buffers
        found.append(Memory(*setting, name, weights, gradients, optimizer, activations, buffers, total))
    return found


def host_memory(recipe: Recipe, deepspeed: dict[str, Any], num_processes: int) -> int:
    """Return what one process on a CPU holds, its libraries included; bytes.

    Of DeepSpeed's bucket only what gradients fill takes memory there. Rows are taken to be full of documents as long as
    they may be.
    """
    section = deepspeed["zero_optimization"]
    filled = min(section.get("reduce_bucket_size", REDUCE_BUCKET), count_parameters(recipe.model).total)
    deepspeed = {**deepspeed, "zero_optimization": {**section, "reduce_bucket_size": filled}}
    moments = memory_by_moment(recipe, deepspeed, section["stage"], num_processes, CPU_LOSS_CHUNK_BYTES)
    lengths = [recipe.data.context_tokens] * taken_micro_batch(recipe.train, num_processes)
    beside = cpu_bytes_beside(recipe.model, recipe.kernels, lengths)
    held = max(memory.total_bytes + (beside if memory.activations_bytes else 0) for memory in moments)
    return held + LIBRARIES_BYTES


class _Step:
    """The tensors of a step, at every moment that can be the fullest."""

    def __init__(self, recipe: Recipe, deepspeed: dict[str, Any], zero_stage: int, num_gpus: int, loss_chunk: int):
        self.stage, self.num_gpus = zero_stage, num_gpus
        train, parameters = recipe.train, count_parameters(recipe.model)
        micro_batch_rows = taken_micro_batch(train, num_gpus)
        self.accumulates = train.rows_per_step > micro_batch_rows * num_gpus
        self.clips = recipe.optimizer.kind == "stable_adamw"
        self.parameters, self.embedding = parameters.total, parameters.embedding
        self.part = self.parameters / num_gpus
        self.muon = count_muon_parameters(recipe.model, recipe.optimizer)
        self.muon_buffers = muon_buffer_bytes(recipe, num_gpus)
        self.states = optimizer_bytes(recipe.model, recipe.optimizer) / num_gpus
        self.value_bytes = activation_bytes(deepspeed)
        in_fp32 = deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32"
        self.gradient_bytes = FP32_BYTES if in_fp32 else self.value_bytes
        tokens = micro_batch_rows * recipe.data.context_tokens
        num_masked = tokens * recipe.mask.highest_rate
        self.activations = estimate_activations(recipe.model, recipe.kernels, tokens, num_masked, self.value_bytes)
        # Of few positions one chunk has them all, and is no larger than they are.
        self.loss_chunk = min(loss_chunk, 2 * FP32_BYTES * num_masked * recipe.model.vocab_size)
        section = deepspeed.get("zero_optimization", {})
        self.optimizer_offloaded = "offload_optimizer" in section
        self.weights_offloaded = zero_stage == 3 and "offload_param" in section
        has_bucket = zero_stage == 3 or section.get("contiguous_gradients", True)
        two = 2 if zero_stage < 3 and section.get("overlap_comm") else 1
        self.bucket_elements = section.get("reduce_bucket_size", REDUCE_BUCKET)
        self.bucket = two * self.bucket_elements * self.value_bytes if has_bucket else 0
        self.prefetch = section.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET)
        self.max_live = section.get("stage3_max_live_parameters", MAX_LIVE)

    def touched(self) -> float:
        """Elements of the gradients that a GPU keeps for its part, on the GPU that keeps most.

        ZeRO 1 and 2 lay tensors end to end, the embedding first, and cut that; DeepSpeed keeps whole tensors of which a
        part has anything. ZeRO 3 cuts every tensor. With Muon matrices and all else are cut apart: every GPU has a part
        of the embedding.
        """
        if self.muon and self.stage < 3:
            return self.embedding + (self.parameters - self.embedding) / self.num_gpus
        if self.stage == 3 or self.part >= self.embedding:
            return self.part
        return min((self.embedding // self.part + 1) * self.part, self.parameters)

    def gathered(self) -> float:
        """Bytes of whole weights that ZeRO 3 keeps, and of the message in which more of them arrive.

        The embedding, which is needed first, has been sent alone: no message has it and others.
        """
        live, arriving = min(self.parameters, self.max_live), min(self.parameters - self.embedding, self.prefetch)
        return self.value_bytes * (live + arriving) if self.stage == 3 else 0.0

    def accumulated(self) -> float:
        """Bytes of gradients that wait for the micro-batches still to come."""
        if self.stage > 1 and self.optimizer_offloaded:
            return 0.0
        elements = self.parameters if self.stage == 1 else self.touched()
        return self.gradient_bytes * elements if self.accumulates or self.stage == 3 else 0.0

    def moments(self) -> dict[str, tuple[float, float, float, float, float]]:
        """Return (weights, gradients, optimizer, activations, buffers) of each moment, bytes."""
        weights = self.value_bytes * (self.part if self.stage == 3 else self.parameters)
        states = (0.0 if self.weights_offloaded else weights, 0.0 if self.optimizer_offloaded else self.states)
        held, kept, logits = self.accumulated(), self.activations.kept, self.activations.logits
        waiting = self.bucket if self.stage == 3 or (self.stage == 1 and self.accumulates) else 0
        embedding = self.value_bytes * self.embedding  # its gradient comes with the loss, before all others
        loss = logits + max(self.loss_chunk, embedding) + waiting + self.gathered()
        return {
            "loss": (states[0], held, states[1], kept, loss),
            "backward": (states[0], held, states[1], kept, embedding + self.bucket + self.gathered()),
            "embedding": (
                states[0],
                self._unreduced(held),
                states[1],
                0.0,
                2 * embedding + self.bucket + self.gathered(),
            ),
            "reduction": (states[0], self._reduced(held), states[1], 0.0, self._messages(embedding)),
            "optimizer": self._optimizer(*states, embedding),
        }

    def _unreduced(self, held: float) -> float:
        """Bytes of gradients at the end of a backward pass, when the embedding gets its second; at ZeRO 1 of all."""
        return self.gradient_bytes * self.parameters if self.stage == 1 else held

    def _reduced(self, held: float) -> float:
        """Bytes of gradients as the last of a backward pass leave the bucket: accumulated ones, and this one's part."""
        if self.stage == 3 or self.optimizer_offloaded:
            return held
        outside = max(self.gradient_bytes * self.parameters - self.bucket, 0.0) if self.stage == 1 else held
        return outside + self.gradient_bytes * self.touched()

    def _messages(self, embedding: float) -> float:
        """Bytes of the bucket and of the flat copy that is sent, or of a gradient that is still to be copied."""
        sent = self.value_bytes * min(self.parameters, self.bucket_elements)
        return self.bucket + max(sent, embedding) + self.gathered()

    def _optimizer(
        self, weights: float, optimizer: float, embedding: float
    ) -> tuple[float, float, float, float, float]:
        """The optimizer's step: fp32 gradients of the part, made of a flat copy; then StableAdamW's own tensors.

        At ZeRO 3 beside the bucket, and the embedding's weights, which are not let go.
        """
        beside = self.bucket + embedding if self.stage == 3 else 0.0
        if self.optimizer_offloaded:
            return (weights, 0.0, optimizer, 0.0, beside)
        largest = self.embedding / self.num_gpus if self.stage == 3 else min(self.embedding, self.part)
        clipped = CLIP_BYTES * largest if self.clips else 0.0
        moved = []  # what is moved at a time, with the optimizer's own tensors: Muon's matrices come before all else
        if self.muon:
            moved.append((self.muon / self.num_gpus, self.muon_buffers))
        moved.append((self.part - self.muon / self.num_gpus, clipped))
        held = [(FP32_BYTES * part, max(self.gradient_bytes * part, own)) for part, own in moved]
        gradients, own = max(held, key=sum)
        return (weights, self.gradient_bytes * self.touched() + gradients, optimizer, 0.0, own + beside)


def with_setting(recipe: Recipe, micro_batch_rows: int, activation_checkpoint_fraction: float) -> Recipe:
    """Return `recipe` with another micro-batch and another share of checkpointed layers."""
    return dataclasses.replace(
        recipe,
        train=dataclasses.replace(recipe.train, micro_batch_rows=micro_batch_rows),
        kernels=dataclasses.replace(recipe.kernels, activation_checkpoint_fraction=activation_checkpoint_fraction),
    )


def largest_micro_batch(
    recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int, activation_checkpoint_fraction: float, usable: float
) -> int:
    """Return the largest micro-batch, rows, that divides and fits, no larger than the recipe's; 0 if there is none.

    At the ZeRO stage of `deepspeed`; usable: bytes that tensors may fill.
    """
    stage = deepspeed["zero_optimization"]["stage"]
    for rows in reversed(possible_micro_batches(recipe.train, num_gpus)):
        if rows <= recipe.train.micro_batch_rows:
            setting = with_setting(recipe, rows, activation_checkpoint_fraction)
            if peak_memory(setting, deepspeed, stage, num_gpus).total_bytes <= usable:
                return rows
    return 0


def memory_table(recipe: Recipe, deepspeed: dict[str, Any], num_gpus: int) -> tuple[Memory, ...]:
    """Return the memory of every ZeRO stage, checkpointed share and micro-batch near the recipe's."""
    sizes = possible_micro_batches(recipe.train, num_gpus)
    own = sizes.index(taken_micro_batch(recipe.train, num_gpus))
    near = sizes[max(own - SMALLER, 0) : own + LARGER + 1]
    shares = sorted({*SHARES, recipe.kernels.activation_checkpoint_fraction})
    return tuple(
        peak_memory(with_setting(recipe, rows, share), deepspeed, stage, num_gpus)
        for stage in STAGES
        for share in shares
        for rows in near
    )


def usable_bytes(assumptions: Assumptions) -> float:
    """Return the bytes of one GPU that tensors may fill."""
    return assumptions.gpu_memory_gb * 1e9 * assumptions.usable_share
