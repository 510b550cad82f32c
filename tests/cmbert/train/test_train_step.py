"""A whole `train_step` on `meta`, with a stand-in for DeepSpeed: what crosses between host and device, and how often.

DeepSpeed's own part runs in test_host_waits.py, on a CPU.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cmbert.accel import ATTENTION_KERNELS, AttentionBackend
from cmbert.cluster.distributed import Launch
from cmbert.cluster.preemption import StopRequest
from cmbert.config.load import load_recipe
from cmbert.config.schema import GuardConfig
from cmbert.data.batches import PackedBatch, StepData, StepFacts
from cmbert.model import encoder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.schedule import Schedule
from cmbert.tokenizer import SPECIALS_PER_SEGMENT
from cmbert.train import loop
from cmbert.train.guards import Guard
from cmbert.zero.step_timer import StepTimer
from tests.cmbert.devices import META, Dispatched

ROWS, CONTEXT, SEGMENTS, MASKED = 2, 64, 7, 30


class Engine:
    """Averages and steps as DeepSpeed does: plain torch, and the norm and the guard where the optimizer asks."""

    def __init__(self, model: nn.Module):
        self.module, self.device, self.num_steps = model, META, 0
        self.optimizer = SimpleNamespace(param_groups=[{}], _global_grad_norm=None)
        self.basic_optimizer = SimpleNamespace(should_step=None)
        self.is_boundary = False

    def __call__(self, *batch: Any) -> Any:
        return self.module(*batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.is_boundary = is_boundary

    def step(self) -> None:
        if self.is_boundary:
            norms = [weight.grad.float().norm() for weight in self.module.parameters()]
            self.optimizer._global_grad_norm = torch.stack(norms).norm()
            self.basic_optimizer.should_step()
            self.num_steps += 1


def make_data(num_micro_batches: int) -> StepData:
    tokens = torch.zeros(ROWS * CONTEXT, dtype=torch.int64, device=META)
    masked = torch.zeros(MASKED, dtype=torch.int64, device=META)
    bounds = torch.zeros(SEGMENTS + 1, dtype=torch.int32, device=META)
    batch = PackedBatch(tokens, bounds, masked, masked, tokens.int(), CONTEXT)
    tokens_of_sources = [num_micro_batches * (ROWS * CONTEXT - SEGMENTS * SPECIALS_PER_SEGMENT), 0]
    facts = StepFacts(0, tokens_of_sources, num_micro_batches * SEGMENTS, {}, [], b"")
    sources = torch.zeros(ROWS, dtype=torch.int64, device=META)
    return StepData([batch] * num_micro_batches, [sources] * num_micro_batches, facts)


@pytest.fixture
def make_run(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    text = recipe_file.read_text(encoding="utf-8")
    (path,) = [line for line in text.splitlines() if line.startswith("path")]
    recipe_file.write_text(text.replace(path, f"{path}\n[[data.sources]]\n{path}"), encoding="utf-8")
    recipe = load_recipe(recipe_file)
    backend = AttentionBackend("torch_varlen", ATTENTION_KERNELS["torch_varlen"].call)
    monkeypatch.setattr(encoder, "attention_backend", lambda device, dtype, requested: backend)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *a, **k: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(loop, "set_accumulation", lambda engine, num_micro_batches: None)
    monkeypatch.setattr(loop, "send_to_host", lambda figures: figures)  # `meta` has nothing to send

    def make_run() -> Any:
        with torch.device(META):
            engine = Engine(MaskedLanguageModel(recipe.model).bfloat16())
        guard = Guard(GuardConfig(spike_action="skip"), META)
        quiet = SimpleNamespace(enter=lambda phase, step: None)
        writer = SimpleNamespace(is_writing=lambda: False, hold_weights=lambda: None)
        return SimpleNamespace(
            recipe=recipe, schedule=Schedule.of(recipe),
            engine=engine, guard=guard, watchdog=quiet, writer=writer, device=META, step=0,
            launch=Launch(0, 1, 0, "127.0.0.1", 1), timer=StepTimer(META),
        )  # fmt: skip

    return make_run


def launch(run: Any, num_micro_batches: int) -> Dispatched:
    with Dispatched() as seen:
        launched = loop.train_step(run, make_data(num_micro_batches), 0.0, StopRequest(None))
    assert run.engine.num_steps == run.step == 1
    assert launched.figures.device == META
    return seen


@pytest.mark.parametrize("num_micro_batches", [1, 2, 5])
def test_two_copies_a_step_and_none_a_micro_batch(make_run: Callable[[], Any], num_micro_batches: int) -> None:
    seen = launch(make_run(), num_micro_batches)
    # How many tokens this rank has masked, and its state: from pinned memory, which nobody waits for.
    assert seen.crossings == ["aten._to_copy.default"] * 2


def test_a_copy_in_a_micro_batch_would_be_seen(make_run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sound = loop.SourceLoss.add

    def careless(self: Any, batch: Any, losses: torch.Tensor, row_sources: Any) -> None:
        sound(self, batch, losses, torch.zeros(ROWS, dtype=torch.int64).to(META))

    monkeypatch.setattr(loop.SourceLoss, "add", careless)
    assert len(launch(make_run(), 3).crossings) == 2 + 3


def test_a_value_asked_for_is_an_error(make_run: Callable[[], Any]) -> None:
    run = make_run()
    run.engine.backward = lambda loss: float(loss.detach())
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        launch(run, 1)
