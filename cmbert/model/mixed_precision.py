"""Training in bf16 on fp32 copies of the weights, as DeepSpeed's bf16 optimizer keeps them."""

import torch


class MixedPrecision:
    """AdamW on fp32 copies of bf16 weights: clip, step, copy back. Weights that are fp32 are their own copies.

    No decay on norms and biases. The learning rate is `learning_rate` at first; `step` may set another.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float = 0.01):
        self.weights: list[torch.nn.Parameter] = list(model.parameters())
        self.copies: list[torch.Tensor] = []
        for weight in self.weights:
            self.copies.append(weight if weight.dtype == torch.float32 else weight.detach().float())
        decayed = [copy for copy in self.copies if copy.ndim > 1]
        others = [copy for copy in self.copies if copy.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float | None = None) -> None:
        """Apply and clear the gradients of the weights, clipped to a norm of 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if learning_rate is None else learning_rate
        for copy, weight in zip(self.copies, self.weights, strict=True):
            if copy is not weight and weight.grad is not None:
                copy.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for copy, weight in zip(self.copies, self.weights, strict=True):
            if copy is not weight:
                weight.copy_(copy)
