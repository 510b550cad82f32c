"""The optimizer and its parameter groups."""

import torch
from torch import nn

from cmbert.config.schema import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters: matrices (embedding included) decay, vectors (norm weights, the decoder bias) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return torch's fused AdamW (CPU and CUDA): DeepSpeed's own Adam would compile an extension at start."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=0.0,  # set before every step from the schedule
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
