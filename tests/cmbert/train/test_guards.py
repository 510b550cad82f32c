"""Guards: what is skipped, what is remembered, and when the run ends."""

import json
import math
import statistics
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cmbert.config.schema import GuardConfig
from cmbert.train.guards import (
    LEAST_HISTORY,
    LEAST_SPREAD,
    MAD_TO_SIGMA,
    Guard,
    Judgement,
    TrainingError,
    robust_scores,
)

CPU = torch.device("cpu")


class Engine:
    """Steps as DeepSpeed does: the optimizer asks twice, as ZeRO does for two groups, or never."""

    def __init__(self, norm: torch.Tensor, num_groups: int = 2):
        self.optimizer, self.device = SimpleNamespace(_global_grad_norm=norm), norm.device
        self.basic_optimizer, self.num_groups = SimpleNamespace(should_step=None), num_groups

    def step(self) -> None:
        self.decisions = [self.basic_optimizer.should_step() for _ in range(self.num_groups)]


def make(memory: dict[str, Any] | None = None, **options: Any) -> Guard:
    return Guard(GuardConfig(**options), CPU, memory)


def launch(guard: Guard, loss: float, norm: float) -> Judgement:
    """One step as the loop launches it."""
    engine = Engine(torch.tensor(norm))
    judgement = Judgement(*(figure.item() for figure in guard.step(engine, torch.tensor(loss, dtype=torch.float64))))
    first, second = (decision.skipped.item() for decision in engine.decisions)
    assert first == second == (judgement.verdict != 0)
    return judgement


def step(guard: Guard, number: int, loss: float, norm: float) -> str:
    return guard.finish(number, loss, launch(guard, loss, norm))


def naive_score(value: float, before: list[float]) -> float:
    """As the docstring of `robust_scores` says it, with the standard library."""
    if len(before) < LEAST_HISTORY:
        return 0.0
    median = statistics.median(before)
    spread = MAD_TO_SIGMA * statistics.median(abs(x - median) for x in before)
    return (value - median) / max(spread, LEAST_SPREAD * abs(median), math.ulp(1.0))


@pytest.mark.parametrize("window", [LEAST_HISTORY, 33])
def test_scores_are_the_naive_ones_bit_for_bit(window: int) -> None:
    random, before = np.random.default_rng(0), (deque(maxlen=window), deque(maxlen=window))
    guard = make(spike_action="skip", spike_score=1e3, spike_window_steps=window)
    for number in range(4 * window):
        loss, norm = random.normal(5, 1), float(np.float32(random.lognormal(0, 1)))
        is_spike = number > window and number % 5 == 0
        loss = 1e6 if is_spike else loss  # refused, so the window stays as it is
        found = launch(guard, loss, norm)
        assert (found.loss_score, found.norm_score) == (naive_score(loss, before[0]), naive_score(norm, before[1]))
        assert guard.finish(number, loss, found) == ("spike" if is_spike else "ok")
        if not is_spike:
            before[0].append(loss)
            before[1].append(norm)
    assert list(guard.losses) == list(before[0])


def score(value: float, before: list[float]) -> float:
    history = torch.tensor([before], dtype=torch.float64)
    return robust_scores(torch.tensor([value], dtype=torch.float64), history, torch.tensor(len(before))).item()


def test_score_is_the_robust_z_score() -> None:
    before = np.random.default_rng(0).normal(3.0, 0.2, 1001).tolist()
    assert score(3.0 + 5 * 0.2, before) == pytest.approx(5, abs=0.5)
    assert score(3.0 - 5 * 0.2, before) == pytest.approx(-5, abs=0.5)
    spoiled = [*before, *[1e9] * 100]  # spikes in the window hardly move it
    assert score(4.0, spoiled) == pytest.approx(score(4.0, before), rel=0.25)
    assert score(100.0, [1.0] * (LEAST_HISTORY - 1)) == 0.0
    assert math.isfinite(score(2.0, [0.0] * 50))


def test_nothing_waits_for_the_device() -> None:
    guard = Guard(GuardConfig(spike_action="skip"), torch.device("meta"))  # where a value asked for is an error
    for _ in range(2):
        engine = Engine(torch.zeros((), device="meta"))
        judgement = guard.step(engine, torch.zeros((), dtype=torch.float64, device="meta"))
        assert {tensor.device.type for tensor in (*engine.decisions[0], *judgement)} == {"meta"}


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_is_skipped_counted_and_ends_the_run(bad: tuple[float, float]) -> None:
    guard = make(max_skipped_steps=2)
    assert step(guard, 0, 1.0, 1.0) == "ok"
    assert step(guard, 1, *bad) == "not finite"
    assert step(guard, 2, 1.0, 1.0) == "ok"  # the count in a row begins anew
    for number in (3, 4):
        assert step(guard, number, *bad) == "not finite"
    with pytest.raises(TrainingError, match=r"step 5: .*3 steps in a row"):
        step(guard, 5, *bad)
    assert guard.num_skipped == 4
    assert list(guard.losses) == [1.0, 1.0]


def test_deepspeed_may_have_skipped_by_itself() -> None:
    guard = make()
    engine = Engine(torch.tensor(1.0), num_groups=0)
    judgement = Judgement(*(figure.item() for figure in guard.step(engine, torch.tensor(1.0))))
    assert (guard.finish(0, 1.0, judgement), judgement.norm) == ("not finite", math.inf)


def test_the_host_may_count_a_step_late() -> None:
    prompt, late = (make(spike_action="skip", spike_window_steps=20) for _ in range(2))
    random, waiting = np.random.default_rng(3), deque()
    for number in range(60):
        loss, norm = float(random.normal(5, 1)) + 100 * (number % 13 == 12), 1.0
        found = launch(late, loss, norm)
        assert found == launch(prompt, loss, norm)
        prompt.finish(number, loss, found)
        waiting.append((number, loss, found))
        if len(waiting) > 1:
            late.finish(*waiting.popleft())
    late.finish(*waiting.popleft())
    assert late.memory() == prompt.memory()
    assert prompt.num_skipped == 3


def test_spikes_need_an_action_and_a_history() -> None:
    for action, expected in (("none", "ok"), ("skip", "spike"), ("rewind", "spike")):
        guard = make(spike_action=action, spike_score=8.0)
        random = np.random.default_rng(1)
        assert step(guard, 0, 50.0, 50.0) == "ok"  # nothing to compare with
        for number in range(1, 60):
            assert step(guard, number, 5 + 0.1 * random.random(), 1 + 0.1 * random.random()) == "ok"
        assert step(guard, 60, 9.0, 1.0) == expected
        assert step(guard, 61, 5.0, 30.0) == expected
        assert step(guard, 62, 1.0, 0.1) == "ok"  # below is no spike


def test_a_lasting_rise_is_no_spike_to_be_skipped_for_ever() -> None:
    guard = make(spike_action="skip", max_skipped_steps=3)
    for number in range(30):
        step(guard, number, 5.0 + number % 2, 1.0)
    for number in range(30, 33):
        assert step(guard, number, 500.0, 1.0) == "spike"
    with pytest.raises(TrainingError, match="4 steps in a row"):
        step(guard, 33, 500.0, 1.0)


def test_a_guard_from_its_memory_judges_as_the_first() -> None:
    options = {"spike_action": "skip", "spike_window_steps": 20}
    first, random = make(**options), np.random.default_rng(2)
    for number in range(50):
        step(first, number, float(random.normal(5, 0.1)), float(random.normal(1, 0.1)))
    second = make(json.loads(json.dumps(first.memory())), **options)
    for number in range(50, 120):
        figures = float(random.normal(5, 0.4)), float(random.normal(1, 0.4))
        found = launch(first, *figures)
        assert found == launch(second, *figures)
        assert first.finish(number, figures[0], found) == second.finish(number, figures[0], found)
    assert first.num_skipped == second.num_skipped
