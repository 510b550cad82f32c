"""What a recipe's optimizer is made of: the groups of parameters, and which matrices Muon moves."""

from typing import Any

from torch import nn

from cmbert.config.schema import OptimizerConfig
from cmbert.model.heads import stacked_matrices
from cmbert.zero.muon import Muon
from cmbert.zero.optim import AdamW, whole_shape


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Split parameters: matrices decay, vectors (norm weights, the decoder bias) do not, embeddings by config.

    For Muon, which moves whole groups, the matrices between hidden states are a group before the others.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and not config.decay_embeddings}
    by_muon = {id(matrix) for matrix in stacked_matrices(model)} if config.kind == "muon" else set()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in parameters if id(p) in by_muon]
    others = [p for p in parameters if id(p) not in by_muon]
    decayed = [p for p in others if len(whole_shape(p)) >= 2 and id(p) not in embeddings]
    kept = [p for p in others if len(whole_shape(p)) < 2 or id(p) in embeddings]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "orthogonal": True},
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Return the recipe's optimizer with learning rate 0; the schedule sets it before every step."""
    groups = parameter_groups(model, config)
    options: dict[str, Any] = {
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "max_norm": config.gradient_clip,
    }
    if config.kind == "muon":
        return Muon(groups, stacked=stacked_matrices(model), momentum=config.momentum, **options)
    return AdamW(groups, clip_updates=config.kind == "stable_adamw", **options)
