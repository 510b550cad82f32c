"""Compile what part 2 runs, into the cache that the parts share; part 1 starts this beside its tests."""

import sys
from dataclasses import replace

from measuring import Measuring, part

from cmbert.bench.throughput import make_batch, our_runner


def compile_steps(measuring: Measuring) -> None:
    """Run one training step of large at each length."""
    model, kernels = measuring.large()
    runner = our_runner("train", model, replace(kernels, compile=True), measuring.device)
    for name, load in measuring.loads(1024, 8192):
        runner(make_batch(load.lengths, model.vocab_size, measuring.device))()
        print("warm:", name, flush=True)


if __name__ == "__main__":
    sys.exit(part(lambda measuring: measuring.measure("warm", lambda: compile_steps(measuring))))
