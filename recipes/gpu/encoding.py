"""Part 6: encoding at 512 and 8,192, fixed and variable lengths, beside transformers' ModernBERT on the same tokens."""

import sys
from dataclasses import replace
from functools import partial

from measuring import Measuring, part

from cmbert.bench.throughput import bench_throughput
from cmbert.environment import is_installed


def encode(measuring: Measuring, context: int) -> None:
    """Time ours, compiled, and every attention of transformers that this machine has, in turn."""
    model, kernels = measuring.large()
    loads = measuring.loads(context)
    peer = "hf" if is_installed("transformers") else None
    rows = bench_throughput("inference", model, replace(kernels, compile=True), [load for _, load in loads], peer)
    for row in rows:
        key = next(f"encode_{name}" for name, load in loads if f", {load.name}, " in row["work"])
        if row["peer"] != "cmbert":
            measuring.detail(**{f"{key} {row['peer']}": row})
            continue
        measuring.detail(**{key: row})
        measuring.put(**{key: row["tokens_per_second"], f"{key}_mfu": row["mfu"]})
        measuring.put(**{f"{key}_memory": row["run_memory_mb"] / 1000})
        if "ratio" in row:
            measuring.put(**{f"{key}_ratio": row["ratio"]})
    if peer is None:
        for name, _ in loads:
            measuring.lack(f"encode_{name}_ratio", "transformers is not installed")


def measurements(measuring: Measuring) -> None:
    """Run all of the part."""
    for context in (512, 8192):
        measuring.measure(f"encode_{context}", partial(encode, measuring, context))


if __name__ == "__main__":
    sys.exit(part(measurements))
