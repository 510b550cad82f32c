"""An attention that stands in for a fused kernel: it keeps for the backward pass what such a kernel keeps."""

import torch

from cmbert.accel import AttentionBackend


@torch.library.custom_op("cmbert_tests::keeps_no_scores", mutates_args=())
def keeps_no_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Keeps queries, keys, values and the output; what it computes is wrong."""
    return value.clone(memory_format=torch.contiguous_format)


@keeps_no_scores.register_fake
def shape_of(query, key, value):
    return torch.empty_like(value, memory_format=torch.contiguous_format)


@torch.library.custom_op("cmbert_tests::keeps_no_scores_backward", mutates_args=())
def gradients(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor
) -> list[torch.Tensor]:
    return [gradient.clone() for _ in range(3)]


@gradients.register_fake
def shapes_of(gradient, query, key, value, out):
    return [torch.empty_like(gradient) for _ in range(3)]


keeps_no_scores.register_autograd(
    lambda ctx, gradient: tuple(gradients(gradient, *ctx.saved_tensors)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)

FUSED = AttentionBackend("fused", lambda query, key, value, *_: keeps_no_scores(query, key, value))
