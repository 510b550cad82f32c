"""What a model costs in closed form: operations per token, activations. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from cmbert.config.parameters import count_parameters
from cmbert.config.schema import ModelConfig, Recipe

GRADIENT_CALLS = 2  # the backward pass costs about twice the forward pass


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
    """Return the (query, key) pairs of a piece: all for side -1, else those at most `side` tokens apart."""
    if side < 0 or length <= side:
        return length**2
    return length * (2 * side + 1) - side * (side + 1)  # the first and last `side` tokens see fewer


def count_flops(model: ModelConfig, context: int, masked_share: float) -> FlopsPerToken:
    """Return the operations per row position in rows of one piece of `context` tokens; shorter pieces cost less.

    masked_share: share of the positions that the head is evaluated at.
    """
    width, side = model.hidden_size, model.local_window // 2
    num_global = -(-model.num_layers // model.global_every)
    parameters = count_parameters(model)
    linear = 2 * (parameters.attention + parameters.mlp)
    pair = 4 * width  # scores and weighted sum, 2 x width each per key seen
    global_attention = num_global * pair * keys_seen(context, -1) / context
    local_attention = (model.num_layers - num_global) * pair * keys_seen(context, side) / context
    forward = linear + global_attention + local_attention
    head = masked_share * 2 * (width**2 + width * model.vocab_size)
    training = (1 + GRADIENT_CALLS) * (forward + head)
    return FlopsPerToken(linear, global_attention, local_attention, forward, head, training)


def count_batch_flops(model: ModelConfig, lengths: Sequence[int], num_masked: int, *, training: bool) -> float:
    """Return the operations of a batch of pieces of `lengths`: the encoder, or a training step with its head.

    Only what the model needs: nothing computed twice (checkpointing) or in vain (padding, masked-out scores) counts.
    """
    if not training:
        return float(sum(length * count_flops(model, length, 0.0).forward for length in lengths))
    share = num_masked / sum(lengths)
    return sum(length * count_flops(model, length, share).training for length in lengths)


def estimate_activations(recipe: Recipe, value_bytes: int) -> int:
    """Estimate the bytes one micro-batch holds at the end of its forward pass, with an attention that keeps no scores.

    Per token, in values. A layer: 2 residual inputs, 2 norm outputs, q k v, attention output (8 x width); GeGLU input
    (2 x intermediate), its GELU (compiled code computes it again), the product. A checkpointed layer: its input, but
    one layer at a time is computed again. Around the layers: 4 x width. At the masked positions, at the highest rate:
    logits and what the head keeps (5 x width). Counted by hand; tests compare it with what autograd keeps.
    """
    model, mask, kernels = recipe.model, recipe.mask, recipe.kernels
    tokens = recipe.train.micro_batch_rows * recipe.data.context_tokens
    layer = 8 * model.hidden_size + (3 if kernels.compile else 4) * model.intermediate_size
    num_checkpointed = kernels.num_checkpointed(model.num_layers)
    stack = num_checkpointed * model.hidden_size + max(model.num_layers - num_checkpointed, 1) * layer
    masked = tokens * max(mask.start_rate, mask.peak_rate, mask.end_rate)
    values = tokens * (stack + 4 * model.hidden_size) + masked * (model.vocab_size + 5 * model.hidden_size)
    return int(values * value_bytes)
