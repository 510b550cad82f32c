"""What a model costs in closed form: operations per token, activations. Torch-free."""

from dataclasses import dataclass

from cmbert.config.parameters import count_parameters
from cmbert.config.schema import ModelConfig, Recipe

GRADIENT_CALLS = 2  # the backward pass costs about twice the forward pass
LOGIT_BYTES = 14  # per logit held at the end of the forward: bf16, fp32, its log-softmax, and the gradient of that


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations per row position, forward; a multiplication and an addition count as two."""

    linear: int
    global_attention: int
    local_attention: int
    forward: int
    """The three above: the encoder."""
    head: float
    """Prediction head and decoder, evaluated at masked positions only, at the stage's mean mask rate."""
    training: float
    """Three times (forward + head)."""


def count_flops(model: ModelConfig, context: int, masked_share: float) -> FlopsPerToken:
    """Return the operations per row position in rows of one piece of `context` tokens; shorter pieces cost less.

    masked_share: share of the positions that the head is evaluated at.
    """
    width = model.hidden_size
    num_global = -(-model.num_layers // model.global_every)
    parameters = count_parameters(model)
    linear = 2 * (parameters.attention + parameters.mlp)
    global_attention = num_global * 4 * width * context  # scores and weighted sum, 2 x width each per key seen
    local_attention = (model.num_layers - num_global) * 4 * width * min(context, model.local_window + 1)
    forward = linear + global_attention + local_attention
    head = masked_share * 2 * (width**2 + width * model.vocab_size)
    training = (1 + GRADIENT_CALLS) * (forward + head)
    return FlopsPerToken(linear, global_attention, local_attention, forward, head, training)


def estimate_activations(recipe: Recipe, value_bytes: int) -> int:
    """Estimate the bytes one micro-batch leaves for the backward pass, with a fused attention that keeps no scores.

    Per layer and token, in values: 2 residual inputs, 2 norm outputs, q k v, rotated q k, attention output (10 x
    width); GeGLU input (2 x intermediate), its GELU, the product (4 x intermediate). And the logits at the highest mask
    rate. Counted in cmbert.model by hand; a test compares it with what autograd keeps, nobody yet with a GPU.
    """
    model, mask = recipe.model, recipe.mask
    tokens = recipe.train.micro_batch_rows * recipe.data.context_tokens
    per_layer = 10 * model.hidden_size + 4 * model.intermediate_size
    masked = tokens * max(mask.start_rate, mask.peak_rate, mask.end_rate)
    return int(tokens * model.num_layers * per_layer * value_bytes + masked * model.vocab_size * LOGIT_BYTES)
