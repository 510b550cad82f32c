"""What a model costs in closed form: operations per token, activations. Torch-free."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmbert.config.parameters import count_muon_parameters, count_parameters
from cmbert.config.schema import KernelConfig, ModelConfig, OptimizerConfig

GRADIENT_CALLS = 2  # the backward pass costs about twice the forward pass
FP32_BYTES = 4
BF16_BYTES = 2
OPTIMIZER_BYTES = 3 * FP32_BYTES  # per parameter: fp32 copy and Adam's two moments
NEWTON_SCHULZ_STEPS = 5  # of Muon (Keller Jordan's)
NEWTON_SCHULZ_ELEMENTS = 2**26  # of matrices made orthogonal at once; 128 MiB in bf16, four times that in all (ours)
STORED_TOKENS = (
    2048  # a CPU's attention keeps the probabilities of segments up to here; beyond, SDPA computes them again
)
CPU_NORM_BYTES = 12  # per value that a CPU's RMSNorm reads: fp32 input, square, quotient (measured)


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations per row position, forward; a multiplication and an addition count as two."""

    linear: float
    global_attention: float
    local_attention: float
    forward: float
    """The three above: the encoder."""
    head: float
    """Prediction head and decoder, evaluated at masked positions only, at the stage's mean mask rate."""
    training: float
    """Three times (forward + head)."""


def keys_seen(length: int, side: int) -> int:
    """Return the (query, key) pairs of a segment: all for side -1, else those at most `side` tokens apart."""
    if side < 0 or length <= side:
        return length**2
    return length * (2 * side + 1) - side * (side + 1)  # the first and last `side` tokens see fewer


def count_flops(model: ModelConfig, context: int, masked_share: float) -> FlopsPerToken:
    """Return the operations per row position in rows of one segment of `context` tokens; shorter segments cost less.

    masked_share: share of the positions that the head is evaluated at.
    """
    linear = linear_flops(model)
    global_attention, local_attention = (flops / context for flops in attention_flops(model, {context: 1}))
    forward = linear + global_attention + local_attention
    head = masked_share * head_flops(model)
    training = (1 + GRADIENT_CALLS) * (forward + head)
    return FlopsPerToken(linear, global_attention, local_attention, forward, head, training)


def linear_flops(model: ModelConfig) -> float:
    """Return the operations per token of the layers' matrices, forward."""
    parameters = count_parameters(model)
    return 2 * (parameters.attention + parameters.mlp)


def head_flops(model: ModelConfig) -> float:
    """Return the operations per masked position of prediction head and decoder, forward."""
    return 2 * (model.hidden_size**2 + model.hidden_size * model.vocab_size)


def newton_schulz_flops(rows: int, columns: int) -> int:
    """Return the operations that orthogonalise one matrix: with m <= n, each step m n m, m m m and m m n."""
    least, most = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * least**2 * most + 2 * least**3)


def share_out(costs: Sequence[int], num_ranks: int) -> list[int]:
    """Return the rank that takes each piece of work: the dearest first, each to the rank that has the least to do."""
    loads, owners = [(0, rank) for rank in range(num_ranks)], [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, owners[number] = loads[0]
        heapq.heapreplace(loads, (load + costs[number], owners[number]))
    return owners


def optimizer_bytes(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """Return the bytes of the fp32 copy and the moments over all ranks; Muon has one moment where Adam has two."""
    adam, muon = count_parameters(model).total, count_muon_parameters(model, optimizer)
    return OPTIMIZER_BYTES * adam - FP32_BYTES * muon


def attention_flops(model: ModelConfig, num_segments: Mapping[int, int]) -> tuple[float, float]:
    """Return the operations of the global and the local layers' attention on segments, counted by length; forward."""
    num_global = -(-model.num_layers // model.global_every)
    pair = 4 * model.hidden_size  # scores and weighted sum, 2 x width each per key seen
    seen = [
        sum(count * keys_seen(length, side) for length, count in num_segments.items())
        for side in (-1, model.local_window // 2)
    ]
    return num_global * pair * seen[0], (model.num_layers - num_global) * pair * seen[1]


def count_batch_flops(
    model: ModelConfig, lengths: Sequence[int] | Mapping[int, int], num_masked: float, *, training: bool
) -> float:
    """Return the operations of a batch of segments of `lengths`: the encoder, or a training step with its head.

    lengths: of every segment, or how many segments there are of each length. Only what the model needs counts: nothing
    computed twice (checkpointing) or in vain (padding, masked-out scores).
    """
    num_segments = Counter(lengths)  # a step of a large run has tens of thousands of segments, of a few hundred lengths
    num_tokens = sum(length * count for length, count in num_segments.items())
    forward = num_tokens * linear_flops(model) + sum(attention_flops(model, num_segments))
    return float((1 + GRADIENT_CALLS) * (forward + num_masked * head_flops(model)) if training else forward)


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch, with an attention that keeps no scores."""

    kept: int
    """Held at the end of the encoder's forward pass, and a layer that the backward pass computes again."""
    logits: int
    """Of the masked positions, held while the loss is computed."""


def estimate_activations(
    model: ModelConfig, kernels: KernelConfig, tokens: int, num_masked: float, value_bytes: int
) -> Activations:
    """Estimate what one micro-batch of `tokens` positions holds, in values of `value_bytes`.

    Per token, in values. A layer: 2 residual inputs, 2 norm outputs, q k v, attention output (8 x width); GeGLU input
    (2 x intermediate), its GELU (compiled code computes it again), the product. A checkpointed layer: its input, but
    one layer at a time is computed again. Around the layers: 4 x width. At the masked positions: logits and what the
    head keeps (5 x width). Counted by hand; tests compare it with what autograd keeps.
    """
    layer = 8 * model.hidden_size + (3 if kernels.compile else 4) * model.intermediate_size
    num_checkpointed = kernels.num_checkpointed(model.num_layers)
    stack = num_checkpointed * model.hidden_size + max(model.num_layers - num_checkpointed, 1) * layer
    kept = tokens * (stack + 4 * model.hidden_size) + num_masked * 5 * model.hidden_size
    return Activations(int(kept * value_bytes), int(num_masked * model.vocab_size * value_bytes))


def cpu_bytes_beside(model: ModelConfig, kernels: KernelConfig, lengths: Sequence[int]) -> int:
    """Return what attention and norms keep on a CPU for the backward pass, beyond what they keep on a GPU.

    lengths: of the segments of a micro-batch. Attention keeps its probabilities, of a local layer for three blocks of
    half a window and with copies of keys and values; segments beyond STORED_TOKENS are computed again. Checkpointed
    layers keep it one at a time.
    """
    tokens = sum(lengths)
    num_kept = max(model.num_layers - kernels.num_checkpointed(model.num_layers), 1)
    num_global = -(-num_kept // model.global_every)
    everywhere = model.num_heads * sum(length**2 for length in lengths if length <= STORED_TOKENS)
    local = tokens * (model.num_heads * 3 * (model.local_window // 2) + 4 * model.hidden_size)
    attention = BF16_BYTES * (num_global * everywhere + (num_kept - num_global) * local)
    fused = kernels.compile or model.norm != "rmsnorm"
    return attention + (0 if fused else CPU_NORM_BYTES * model.hidden_size * tokens * 2 * num_kept)
