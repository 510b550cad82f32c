"""Run by test_memory.py under a launcher: the peak of live tensor bytes in training steps at every ZeRO stage.

    python -m torch.distributed.run --nproc-per-node 2 tests/cmbert/plan/zero_memory.py RECIPE.toml OUT.json 1 2 3

Every allocation of torch's CPU allocator is counted, from the building of the model on, as torch.profiler reports it.
"""

import gc
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed import distributed_c10d
from torch.profiler import ProfilerActivity, profile, record_function

from cmbert.cluster.distributed import gather_from_ranks, read_launch
from cmbert.cluster.ending import leave
from cmbert.config.deepspeed import resolve_deepspeed
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.model import encoder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.zero.engine import build_engine, start_distributed, stop_distributed
from cmbert.zero.groups import build_optimizer
from tests.cmbert.fused import FUSED

NUM_STEPS = 2  # the optimizer's moments are made in the first; the second is like all others
PHASES = ("forward", "backward", "step")


def train(recipe: Recipe, world_size: int) -> None:
    """Build an engine and train NUM_STEPS steps on random ids, as `cmbert train` does."""
    model = MaskedLanguageModel(recipe.model, recipe.kernels)
    config = resolve_deepspeed(recipe, world_size)
    engine = build_engine(model, build_optimizer(model, recipe.optimizer), config)
    num_tokens = config["train_micro_batch_size_per_gpu"] * recipe.data.context_tokens
    ids = torch.randint(recipe.model.vocab_size, (num_tokens,))
    bounds = torch.arange(0, num_tokens + 1, recipe.data.context_tokens, dtype=torch.int32)
    masked = torch.arange(int(num_tokens * recipe.mask.peak_rate))
    for _ in range(NUM_STEPS):
        for index in range(config["gradient_accumulation_steps"]):
            engine.set_gradient_accumulation_boundary(index + 1 == config["gradient_accumulation_steps"])
            gc.collect()  # DeepSpeed leaves cycles; when Python would find them is chance
            with record_function("phase:forward"):
                loss, _, _ = engine(ids, bounds, masked, ids[masked])
            with record_function("phase:backward"):
                engine.backward(loss / len(masked))
            with record_function("phase:step"):
                engine.step()
    engine.destroy()


class OneThread(distributed_c10d.ProcessGroupGloo):
    """Gloo with one thread: when it says that a message is done, those before are no longer held."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta):
        options = self._Options()
        options._devices, options._threads, options._timeout = [self.create_default_device()], 1, timeout
        super().__init__(store, rank, size, options)


def let_go_of_messages() -> None:
    """Let no rank go on from a collective before gloo's threads have let its message go, as NCCL has none to hold it.

    A thread says that a message is done, and gives its memory back when it next runs, which a busy machine puts off.
    """
    wait = torch.distributed.Work.wait

    def wait_and_let_go(work: torch.distributed.Work, *arguments: Any) -> bool:
        is_done = wait(work, *arguments)
        for group in list(distributed_c10d._world.pg_map):
            wait(group.allreduce([torch.zeros(1)]))
        return is_done

    torch.distributed.Work.wait = wait_and_let_go


def skip_products() -> torch.library.Library:
    """Let products be zeros while what is returned lives: they take minutes on a CPU without instructions for bf16."""
    library = torch.library.Library("aten", "IMPL")
    for name, operands in {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.items():

        def product(*matrices: torch.Tensor, first: int = operands, **factors: float) -> torch.Tensor:
            left, right = matrices[first:]
            return left.new_zeros(*left.shape[:-1], right.shape[-1])

        library.impl(name, product, "CPU")
    return library


def measure(recipe: Recipe, world_size: int) -> dict[str, int]:
    """Return the peak of live tensor bytes within each kind of phase of the last step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(recipe, world_size)
    events = profiler.profiler.kineto_results.events()
    marks = [event for event in events if event.name().startswith("phase:")]
    marks = sorted(marks, key=lambda event: event.start_ns())
    in_a_step = len(marks) // NUM_STEPS
    spans = [
        (m.start_ns(), m.start_ns() + m.duration_ns(), number // in_a_step, m.name().removeprefix("phase:"))
        for number, m in enumerate(marks)
    ]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held, peaks = 0, dict.fromkeys(PHASES, 0)
    for when, change in changes:
        held += change
        for first, last, step, phase in spans:
            if first <= when <= last and step == NUM_STEPS - 1:
                peaks[phase] = max(peaks[phase], held)
    return peaks


def main(recipe_file: Path, output: Path, cases: list[str]) -> None:
    """cases: ZeRO stage and overrides, such as 1:train.micro_batch_rows=4; zeroN.json lies beside the recipe."""
    launch = read_launch(os.environ)
    distributed_c10d.ProcessGroupGloo = OneThread
    let_go_of_messages()
    start_distributed(launch, torch.device("cpu"))
    _kept = skip_products()
    encoder.attention_backend = lambda device, dtype, requested: FUSED
    found = {}
    for case in cases:
        stage, *overrides = case.split(":")
        file = recipe_file.with_name(f"zero{stage}.json")
        gc.collect()  # the engine before is a cycle: its end must not lie within this case's profile
        found[case] = measure(load_recipe(recipe_file, [*overrides, f"train.deepspeed={file}"]), launch.world_size)
    everyone = gather_from_ranks(found)
    if launch.rank == 0:
        output.write_text(json.dumps(everyone), encoding="utf-8")
    stop_distributed()
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
