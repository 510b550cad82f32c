"""Part 7: attention alone, global and within the window, forward and backward, of every kernel that can run here."""

import sys
from functools import partial

import torch
from card import seconds_of
from layout import backends, draw
from measuring import Measuring, part

from cmbert.bench.throughput import DTYPE
from cmbert.model.attention import attend

MICRO = 1e6  # us in a second


def time_attention(measuring: Measuring, backend: str, context: int, reach: str) -> dict[str, float]:
    """Return microseconds a token of the forward and of the backward pass, 16 heads of 64."""
    model, _ = measuring.large()
    length, side = measuring.context(context), -1 if reach == "global" else model.local_window // 2
    qkv, layout = draw(measuring, [length] * (measuring.tokens // length), backend)
    out = attend(qkv, layout, side)
    gradient = torch.ones_like(out, dtype=DTYPE)

    def forward() -> None:
        with torch.no_grad():
            attend(qkv, layout, side)

    passes = {"forward": forward, "backward": lambda: torch.autograd.grad(out, qkv, gradient, retain_graph=True)}
    return {
        way: MICRO * seconds_of(run, measuring.device, repeats=10) / measuring.tokens for way, run in passes.items()
    }


def measure_one(measuring: Measuring, backend: str, context: int, reach: str, is_chosen: bool) -> None:
    """Record the times of one kernel; those of the chosen one are the report's figures."""
    found = time_attention(measuring, backend, context, reach)
    measuring.detail(**{f"{backend}_{reach}_{context}": found})
    if is_chosen:
        measuring.put(**{f"attention_{reach}_{context}_{way}": spent for way, spent in found.items()})


def measurements(measuring: Measuring) -> None:
    """Time the kernel that "auto" takes first, then the others."""
    for number, backend in enumerate(backends(measuring)):
        for reach, context in (("global", 1024), ("global", 8192), ("window", 1024), ("window", 8192)):
            name = f"attention_{reach}_{context}" if number == 0 else f"{backend}_{reach}_{context}"
            measuring.measure(name, partial(measure_one, measuring, backend, context, reach, number == 0))


if __name__ == "__main__":
    sys.exit(part(measurements))
