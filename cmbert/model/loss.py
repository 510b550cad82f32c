"""Cross-entropy of the masked positions, its gradient found on the way, without fp32 logits of them all.

Shapes: M masked positions, D hidden width, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

CPU_CHUNK_BYTES = 8 << 20  # fp32 logits of a chunk that stay in a CPU's cache (ours, measured)
CHUNK_BYTES = 128 << 20  # on any other device: those that fill a GPU's kernels (ours, not measured)


class ChunkLoss(NamedTuple):
    """What a chunk of positions adds."""

    losses: torch.Tensor  # (C,) fp32, nats
    num_correct: torch.Tensor  # () int64
    bias_gradient: torch.Tensor | None  # (V,) fp32


ChunkFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], ChunkLoss]


def chunk_loss(
    logits_CV: torch.Tensor, bias_V: torch.Tensor, target_C: torch.Tensor, needs_gradient: bool
) -> ChunkLoss:
    """Cross-entropy of a chunk in fp32; with `needs_gradient` the logits are overwritten by their gradient.

    Correct is a target whose score no other reaches: of equal scores, frequent in bf16, none is first.
    """
    scores_CV = logits_CV.float() + bias_V
    target_C1 = target_C.unsqueeze(1)
    highest_C1 = scores_CV.amax(dim=-1, keepdim=True)
    is_highest_C1 = scores_CV.gather(1, target_C1) == highest_C1
    scores_CV -= highest_C1
    num_highest_C1 = scores_CV.eq(0).sum(dim=-1, keepdim=True)
    target_score_C1 = scores_CV.gather(1, target_C1)
    exponentials_CV = scores_CV.exp_()
    sum_C1 = exponentials_CV.sum(dim=-1, keepdim=True)
    loss_C = (sum_C1.log() - target_score_C1).squeeze(1)
    num_correct = (is_highest_C1 & (num_highest_C1 == 1)).sum()
    if not needs_gradient:
        return ChunkLoss(loss_C, num_correct, None)
    exponentials_CV *= 1 / sum_C1
    exponentials_CV.scatter_(1, target_C1, exponentials_CV.gather(1, target_C1) - 1)
    logits_CV.copy_(exponentials_CV)
    return ChunkLoss(loss_C, num_correct, exponentials_CV.sum(dim=0))


def fusible_chunk_loss(
    logits_CV: torch.Tensor, bias_V: torch.Tensor, target_C: torch.Tensor, needs_gradient: bool
) -> ChunkLoss:
    """`chunk_loss` for torch.compile: written in place, its fp32 values would be stored between the loops."""
    scores_CV = logits_CV.float() + bias_V
    target_C1 = target_C.unsqueeze(1)
    highest_C1 = scores_CV.amax(dim=-1, keepdim=True)
    target_score_C1 = scores_CV.gather(1, target_C1)
    num_highest_C1 = (scores_CV == highest_C1).sum(dim=-1, keepdim=True)
    exponentials_CV = (scores_CV - highest_C1).exp()
    sum_C1 = exponentials_CV.sum(dim=-1, keepdim=True)
    loss_C = (sum_C1.log() + highest_C1 - target_score_C1).squeeze(1)
    num_correct = ((target_score_C1 == highest_C1) & (num_highest_C1 == 1)).sum()
    if not needs_gradient:
        return ChunkLoss(loss_C, num_correct, None)
    is_target_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == target_C1
    gradient_CV = exponentials_CV * (1 / sum_C1) - is_target_CV.float()
    logits_CV.copy_(gradient_CV)
    return ChunkLoss(loss_C, num_correct, gradient_CV.sum(dim=0))


def masked_cross_entropy(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    target_M: torch.Tensor,
    chunk_function: ChunkFunction = chunk_loss,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of `F.linear(hidden_MD, weight_VD, bias_V)` against `target_M` (M,) int64; M may be 0.

    Returns the cross-entropy summed over the positions (fp32, nats), how many of them rank their target first (int64),
    and the cross-entropy of each (M,), which has no gradient. The sum's gradient is computed in the forward pass, chunk
    by chunk, as Liger Kernel does (arXiv 2410.10989): the logits are held once, in the model's dtype, and become their
    own gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad)
    if needs_gradient:
        return _MaskedCrossEntropy.apply(hidden_MD, weight_VD, bias_V, target_M, chunk_function)
    _, loss_M, num_correct, _ = _run_chunks(hidden_MD, weight_VD, bias_V, target_M, chunk_function, False)
    return loss_M.sum(), num_correct, loss_M


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, bias_V, target_M, chunk_function):  # type: ignore[no-untyped-def,override]
        gradient_MV, loss_M, num_correct, bias_gradient_V = _run_chunks(
            hidden_MD, weight_VD, bias_V, target_M, chunk_function, True
        )
        ctx.save_for_backward(gradient_MV @ weight_VD, gradient_MV.t() @ hidden_MD, bias_gradient_V.to(bias_V.dtype))
        ctx.mark_non_differentiable(num_correct, loss_M)
        return loss_M.sum(), num_correct, loss_M

    @staticmethod
    def backward(ctx, scale, *_):  # type: ignore[no-untyped-def,override]
        # In place: the weight's gradient is as large as the embedding. A second backward would find the saved tensors
        # changed, and autograd refuses it.
        return *(gradient.mul_(scale) for gradient in ctx.saved_tensors), None, None


def _run_chunks(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    target_M: torch.Tensor,
    chunk_function: ChunkFunction,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (M, V), or their gradient if `needs_gradient`, losses (M,), the correct, the bias's gradient."""
    logits_MV = F.linear(hidden_MD, weight_VD)
    losses = []
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden_MD.device)
    bias_gradient_V = torch.zeros(bias_V.shape, dtype=torch.float32, device=hidden_MD.device)
    chunk_bytes = CPU_CHUNK_BYTES if hidden_MD.device.type == "cpu" else CHUNK_BYTES
    most = max(1, chunk_bytes // (4 * len(weight_VD)))
    num_chunks = max(1, -(-len(target_M) // most))
    bias_V = bias_V.float()
    # Of nearly equal size: a last one of a single position would be compiled anew.
    chunks = zip(logits_MV.tensor_split(num_chunks), target_M.tensor_split(num_chunks), strict=True)
    for logits_CV, target_C in chunks:
        chunk = chunk_function(logits_CV, bias_V, target_C, needs_gradient)
        losses.append(chunk.losses)
        num_correct = num_correct + chunk.num_correct
        if chunk.bias_gradient is not None:
            bias_gradient_V += chunk.bias_gradient
    return logits_MV, torch.cat(losses), num_correct, bias_gradient_V
