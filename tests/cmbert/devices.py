"""What the host asks of a device, seen without one: on torch's `meta` device nothing is computed and nothing read."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
"""Stands in for a GPU: another device than the host's, whose `.item()`, `.cpu()` and data-dependent shapes raise."""


class Dispatched(TorchDispatchMode):
    """Lists the operators that run in eager code; each is a launch or more, views and empty tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.crossings: list[str] = []
        """Operators with tensors of two devices: on a GPU, copies from and to the host."""
        self.devices: set[torch.device] = set()
        """Where the tensors lie that were made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = {leaf.device for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        given = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        self.devices |= made
        if is_launch(func):
            self.launches[str(func)] += 1
        if len(made | given) > 1:
            self.crossings.append(str(func))
        return out


def is_launch(func: Any) -> bool:
    """Say whether an operator of a graph or of eager code gives the device work to do."""
    return isinstance(func, torch._ops.OpOverload) and not func.is_view and "empty" not in func.name()
