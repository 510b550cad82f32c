"""Guards: what is turned away, what is remembered, and when the run ends."""

import json
import math
from collections import deque

import numpy as np
import pytest

from cmbert.config.schema import GuardConfig
from cmbert.train.guards import LEAST_HISTORY, Guard, TrainingError, robust_score


def step(guard: Guard, number: int, loss: float, norm: float) -> str:
    """One step as the loop does it; the optimizer asks twice, as ZeRO does for two groups."""
    guard.begin(loss, lambda: norm)
    moved = guard.admit()
    assert guard.admit() == moved
    return guard.finish(number, norm, moved)


def test_score_is_the_robust_z_score() -> None:
    before = deque(np.random.default_rng(0).normal(3.0, 0.2, 1001).tolist())
    assert robust_score(3.0 + 5 * 0.2, before) == pytest.approx(5, abs=0.5)
    assert robust_score(3.0 - 5 * 0.2, before) == pytest.approx(-5, abs=0.5)
    spoiled = deque([*before, *[1e9] * 100])  # spikes in the window hardly move it
    assert robust_score(4.0, spoiled) == pytest.approx(robust_score(4.0, before), rel=0.25)
    assert robust_score(100.0, deque([1.0] * (LEAST_HISTORY - 1))) == 0.0
    assert math.isfinite(robust_score(2.0, deque([0.0] * 50)))


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_is_turned_away_counted_and_ends_the_run(bad: tuple[float, float]) -> None:
    guard = Guard(GuardConfig(max_skipped_steps=2))
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
    guard = Guard(GuardConfig())
    guard.begin(1.0, lambda: 1.0)
    assert guard.finish(0, math.inf, moved=False) == "not finite"


def test_spikes_need_an_action_and_a_history() -> None:
    for action, expected in (("none", "ok"), ("skip", "spike"), ("rewind", "spike")):
        guard = Guard(GuardConfig(spike_action=action, spike_score=8.0))
        random = np.random.default_rng(1)
        assert step(guard, 0, 50.0, 50.0) == "ok"  # nothing to compare with
        for number in range(1, 60):
            assert step(guard, number, 5 + 0.1 * random.random(), 1 + 0.1 * random.random()) == "ok"
        assert step(guard, 60, 9.0, 1.0) == expected
        assert step(guard, 61, 5.0, 30.0) == expected
        assert step(guard, 62, 1.0, 0.1) == "ok"  # below is no spike


def test_a_lasting_rise_is_no_spike_to_be_skipped_for_ever() -> None:
    guard = Guard(GuardConfig(spike_action="skip", max_skipped_steps=3))
    for number in range(30):
        step(guard, number, 5.0 + number % 2, 1.0)
    for number in range(30, 33):
        assert step(guard, number, 500.0, 1.0) == "spike"
    with pytest.raises(TrainingError, match="4 steps in a row"):
        step(guard, 33, 500.0, 1.0)


def test_a_guard_from_its_memory_judges_as_the_first() -> None:
    config = GuardConfig(spike_action="skip", spike_window_steps=20)
    first, random = Guard(config), np.random.default_rng(2)
    for number in range(50):
        step(first, number, float(random.normal(5, 0.1)), float(random.normal(1, 0.1)))
    second = Guard(config, json.loads(json.dumps(first.memory())))
    for number in range(50, 120):
        figures = float(random.normal(5, 0.4)), float(random.normal(1, 0.4))
        assert step(first, number, *figures) == step(second, number, *figures)
        assert first.scores == second.scores
    assert first.num_skipped == second.num_skipped
