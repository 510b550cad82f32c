"""ModernBERT's initialisation (arXiv 2412.13663, appendix; after Megatron), the same on every rank and device."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cmbert.model.heads import MaskedLanguageModel
from cmbert.seeding import integer_seed

OUTPUT_PROJECTIONS = ("attn.Wo.weight", "mlp.Wo.weight", "head.dense.weight")
"""Weights scaled down by sqrt(2 * num_layers), so that the residual stream's variance does not grow with depth."""


@torch.no_grad()
def initialise(model: MaskedLanguageModel, seed: int) -> None:
    """Fill every parameter in place: matrices truncated normal (cut at 2 sigma), norms one, biases zero.

    The decoder's weight is the embedding's, and takes the embedding's scale, init_std. Each parameter draws from its
    own generator (seed, "init", its index), on the CPU and in fp32, so no value depends on another parameter's shape,
    the device or the dtype.
    """
    config = model.config
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        std = config.init_std
        if name.endswith(OUTPUT_PROJECTIONS):
            std /= math.sqrt(2 * config.num_layers)
        generator = torch.Generator().manual_seed(integer_seed(seed, "init", index))
        weight = torch.empty(parameter.shape, dtype=torch.float32)
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        parameter.copy_(weight)


class WithoutInitialisation(TorchFunctionMode):
    """Context manager: modules built within keep their tensors as they come, for weights that are loaded or not read.

    On the meta device torch draws through its compiler's decompositions, whose import takes 2 s.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave out the functions of torch.nn.init."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
