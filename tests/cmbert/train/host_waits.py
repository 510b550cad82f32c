"""Run by test_host_waits.py: trains a recipe and counts where the host asks the device for a value.

    python tests/cmbert/train/host_waits.py RECIPE.toml OUT.json

On a GPU every such question stops the host until all that was launched before is done. Here all tensors lie on the CPU,
where torch's dispatcher sees the same questions: `.item()`, `float()`, `if tensor`, `nonzero`, a boolean index.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cmbert.cluster.ending import leave
from cmbert.cluster.preemption import StopRequest
from cmbert.config.load import load_recipe
from cmbert.model import encoder
from cmbert.train import loop
from tests.cmbert.fused import FUSED

# What `torch.cuda.synchronize` is on a GPU does nothing on a CPU, so that DeepSpeed's calls of it are counted apart.
QUESTIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")


class Questions(TorchDispatchMode):
    """Counts the operators whose result the host must see, by the line of the program that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name.startswith(QUESTIONS):
            frame = sys._getframe(1)
            while frame.f_back is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            self.found[f"{name} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1
        return function(*args, **(kwargs or {}))


def count_synchronisations() -> list[str]:
    """Return a list that grows with every wait for the whole device that DeepSpeed asks for."""
    from deepspeed.accelerator import get_accelerator

    found: list[str] = []
    get_accelerator().synchronize = lambda *arguments: found.append(sys._getframe(1).f_code.co_qualname)
    return found


def main(recipe_file: Path, output: Path) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    synchronisations = count_synchronisations()
    encoder.attention_backend = lambda device, dtype, requested: FUSED
    steps: list[dict[str, int]] = []
    sound_step = loop.train_step

    def watched_step(*arguments: Any) -> Any:
        synchronisations.clear()
        with Questions() as questions:
            launched = sound_step(*arguments)
        steps.append(dict(questions.found + Counter(synchronisations)))
        return launched

    loop.train_step = watched_step
    loop.train(load_recipe(recipe_file), resume="never", max_steps=None, stop=StopRequest(None))
    with Questions() as questions:  # so that the count can fail
        bool(torch.ones(()))
    output.write_text(json.dumps({"steps": steps, "control": dict(questions.found)}), encoding="utf-8")
    leave(0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
