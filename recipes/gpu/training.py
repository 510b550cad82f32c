"""Part 2: the training step of large, eager and compiled, at fixed and variable lengths; a profile of one step."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from measuring import Measuring, part
from torch.profiler import ProfilerActivity, profile

from cmbert.bench.throughput import bench_throughput, make_batch, our_runner, synchronise

WARM_STEPS = 3  # before the profiled one
TOP_KERNELS = 25
LONG_GAP = 10e-6  # s; shorter ones lie between any two kernels


class Span(NamedTuple):
    """What the device did from `begin` to `end`, seconds."""

    name: str
    begin: float
    end: float


def summarise(spans: Sequence[Span]) -> dict[str, Any]:
    """Return launches, seconds, idle gaps and the kernels that take most, of one step's work on the device."""
    if not spans:
        return {"launches": 0}
    gaps: list[float] = []
    first = covered = min(span.begin for span in spans)
    for span in sorted(spans, key=lambda span: span.begin):
        if span.begin > covered:
            gaps.append(span.begin - covered)
        covered = max(covered, span.end)
    seconds = dict.fromkeys((span.name for span in spans), 0.0)
    for span in spans:
        seconds[span.name] += span.end - span.begin
    calls = Counter(span.name for span in spans)
    total, idle = covered - first, sum(gaps)
    return {
        "launches": len(spans),
        "seconds": total,
        "idle_seconds": idle,
        "idle_share": idle / total if total else 0.0,
        "long_gaps": sum(gap > LONG_GAP for gap in gaps),
        "longest_gaps_seconds": sorted(gaps, reverse=True)[:5],
        "kernels": [
            {"name": name[:120], "seconds": spent, "share": spent / total if total else 0.0, "calls": calls[name]}
            for name, spent in sorted(seconds.items(), key=lambda item: -item[1])[:TOP_KERNELS]
        ],
    }


def device_spans(run: Any, device: torch.device) -> list[Span]:
    """Return what the device does in one run; on a CPU, torch's outermost operations."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        synchronise(device)
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    micro = 1e-6  # s: the profiler's unit
    return [
        Span(event.name, event.time_range.start * micro, event.time_range.end * micro)
        for event in profiler.events()
        if event.device_type == kind
        and not event.is_user_annotation  # a range around kernels
        and (device.type == "cuda" or event.cpu_parent is None)
    ]


def time_steps(measuring: Measuring, *contexts: int, mode: str, is_variable: bool = False) -> None:
    """Time training steps and record each as it comes."""
    model, kernels = measuring.large()
    loads = [(name, load) for name, load in measuring.loads(*contexts) if name.startswith("variable") == is_variable]
    rows = bench_throughput(
        "train", model, replace(kernels, compile=mode == "compiled"), [load for _, load in loads], None
    )
    for (name, _), row in zip(loads, rows, strict=True):
        key = f"train_{mode}_{name}"
        measuring.put(**{key: row["tokens_per_second"], f"{key}_mfu": row["mfu"]})
        measuring.put(**{f"{key}_memory": row["run_memory_mb"] / 1000})
        measuring.detail(**{key: row})


def profile_step(measuring: Measuring, mode: str) -> None:
    """Profile one step at 1,024."""
    model, kernels = measuring.large()
    (_, load), *_ = measuring.loads(1024)
    device = measuring.device
    batch = make_batch(load.lengths, model.vocab_size, device)
    run = our_runner("train", model, replace(kernels, compile=mode == "compiled"), device)(batch)
    for _ in range(WARM_STEPS):
        run()
    found = summarise(device_spans(run, device))
    measuring.put(**{f"profile_{mode}_{key}": found[key] for key in ("launches", "idle_share")})
    measuring.detail(**{f"profile_{mode}": found})


def measurements(measuring: Measuring) -> None:
    """Run all of the part; eager first, for what is compiled may take longer than there is time."""
    contexts = (1024, 8192)
    measuring.measure("train_eager", lambda: time_steps(measuring, *contexts, mode="eager"))
    measuring.measure("train_compiled", lambda: time_steps(measuring, *contexts, mode="compiled"))
    measuring.measure("profile_compiled", lambda: profile_step(measuring, "compiled"))
    variable = partial(time_steps, measuring, *contexts, mode="compiled", is_variable=True)
    measuring.measure("train_compiled_variable", variable)
    measuring.measure("profile_eager", lambda: profile_step(measuring, "eager"))


if __name__ == "__main__":
    sys.exit(part(measurements))
