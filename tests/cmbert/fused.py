"""An attention that stands in for a fused kernel: it keeps for the backward pass what such a kernel keeps."""

import torch

from cmbert.accel import AttentionBackend


class KeepsNoScores(torch.autograd.Function):
    """Queries, keys, values and the output; what it computes is wrong."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = value.clone(memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient, gradient


FUSED = AttentionBackend("fused", lambda query, key, value, *_: KeepsNoScores.apply(query, key, value), True)
