"""Run by test_plan_memory.py under a launcher: the peak of live tensor bytes in training steps at every ZeRO stage.

    python -m torch.distributed.run --nproc-per-node 2 tests/cmbert/train/zero_memory.py RECIPE.toml OUT.json 1 2 3

Every allocation of torch's CPU allocator is counted, from the building of the model on, as torch.profiler reports it.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.profiler import ProfilerActivity, profile, record_function

from cmbert.config.deepspeed import resolve_deepspeed
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.model import encoder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.train.distributed import gather_from_ranks, leave, read_launch
from cmbert.train.engine import build_engine, start_distributed, stop_distributed
from cmbert.train.optim import build_optimizer
from tests.cmbert.fused import FUSED

NUM_STEPS = 3  # the optimizer's moments are made in the first
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
            let_go(engine)
            with record_function("phase:forward"):
                loss, _, _ = engine(ids, bounds, masked, ids[masked])
            let_go(engine)
            with record_function("phase:backward"):
                engine.backward(loss / len(masked))
            let_go(engine)
            with record_function("phase:step"):
                engine.step()
    engine.destroy()


def let_go(engine: Any) -> None:
    """Make gloo's threads forget the messages before, which they hold until the next: NCCL has no such threads."""
    groups = (torch.distributed.group.WORLD, engine.seq_data_parallel_group, engine.optimizer.dp_process_group)
    for group in groups:
        for work in [torch.distributed.all_reduce(torch.zeros(1), group=group, async_op=True) for _ in range(32)]:
            work.wait()


def measure(recipe: Recipe, world_size: int) -> dict[str, int]:
    """Return the peak of live tensor bytes within each kind of phase of a step and its micro-batches.

    Of all steps but the first, the one that held least: what gloo's threads still hold of a message is chance.
    """
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
    held, peaks = 0, [dict.fromkeys(PHASES, 0) for _ in range(NUM_STEPS)]
    for when, change in changes:
        held += change
        for first, last, step, phase in spans:
            if first <= when <= last:
                peaks[step][phase] = max(peaks[step][phase], held)
    return {phase: min(peak[phase] for peak in peaks[1:]) for phase in PHASES}


def main(recipe_file: Path, output: Path, cases: list[str]) -> None:
    """cases: ZeRO stage and overrides, such as 1:train.micro_batch_rows=4; zeroN.json lies beside the recipe."""
    launch = read_launch(os.environ)
    start_distributed(launch, torch.device("cpu"))
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
