"""Attention alone, as the layers call it: random queries, keys and values of packed segments."""

from collections.abc import Sequence

import torch
from measuring import Measuring

from cmbert.accel import ATTENTION_KERNELS, attention_backend, what_is_missing
from cmbert.bench.throughput import DTYPE
from cmbert.model.attention import PackedLayout


def backends(measuring: Measuring) -> list[str]:
    """Return the fused kernels that can run, the one that "auto" takes first; plain torch in a dry run."""
    if measuring.dry_run:
        return ["cpu"]
    capability = torch.cuda.get_device_capability()
    return [name for name in ATTENTION_KERNELS if not what_is_missing(name, DTYPE, capability)]


def draw(measuring: Measuring, lengths: Sequence[int], backend: str) -> tuple[torch.Tensor, PackedLayout]:
    """Return (T, 3, H, K) that wants a gradient, and the layout of segments of `lengths`."""
    model, _ = measuring.large()
    shape = (sum(lengths), 3, model.num_heads, model.hidden_size // model.num_heads)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(measuring.device, DTYPE)
    layout = PackedLayout.build(
        torch.tensor([0, *lengths]).cumsum(0).int(),
        local_window=model.local_window,
        backend=attention_backend(measuring.device, DTYPE, backend),
        device=measuring.device,
        dtype=DTYPE,
    )
    return qkv.requires_grad_(), layout
