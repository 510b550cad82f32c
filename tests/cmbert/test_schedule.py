"""Schedules against the check values of the paper's formula, and their shape in tokens."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmbert.config.load import load_recipe
from cmbert.config.schema import MaskConfig, ScheduleConfig
from cmbert.schedule import RampStage, Schedule, damped_cosine

NO_RAMP = (RampStage(0, 0, 1),)
ONE_FALL = [1, 0.889, 0.764, 0.634, 0.51, 0.4, 0.308, 0.236, 0.182, 0.139, 0.1]
SWINGS = [1, 0.705, 0.42, 0.615, 0.8, 0.525, 0.26, 0.435, 0.6, 0.345, 0.1]


@pytest.mark.parametrize(("num_cycles", "gamma", "expected"), [(1, 0.0, ONE_FALL), (3, 0.5, SWINGS)])
def test_damped_cosine_check_values(num_cycles: int, gamma: float, expected: list[float]) -> None:
    rates = ScheduleConfig(lr_max=1.0, lr_min=0.1, num_cycles=num_cycles, gamma=gamma)
    found = [damped_cosine(index / 10, rates) for index in range(11)]
    assert found == pytest.approx(expected, abs=6e-4)
    assert found[0] == pytest.approx(1.0, abs=1e-12)
    assert found[-1] == pytest.approx(0.1, abs=1e-12)


def learning_rate(rates: ScheduleConfig, total_tokens: int) -> Callable[[int], float]:
    return Schedule(1, total_tokens, NO_RAMP, rates, MaskConfig()).learning_rate_at


def mask_rate(mask: MaskConfig, total_tokens: int) -> Callable[[int], float]:
    return Schedule(1, total_tokens, NO_RAMP, ScheduleConfig(lr_max=2.0, lr_min=0.2), mask).mask_rate_at


def test_warm_up_then_fall() -> None:
    rate = learning_rate(ScheduleConfig(lr_max=2.0, lr_min=0.2, warmup_tokens=100), 1100)
    assert [rate(tokens) for tokens in (0, 25, 100, 1100, 2000)] == pytest.approx([0, 0.5, 2.0, 0.2, 0.2])


@pytest.mark.parametrize(
    ("kind", "decay_tokens", "expected"),
    [
        ("cosine", 0, [0, 1.0, 2.0, 1.1 + 0.9 * 0.5**0.5, 1.1, 0.2, 0.2]),
        ("linear", 0, [0, 1.0, 2.0, 1.55, 1.1, 0.2, 0.2]),
        ("constant", 0, [0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        # 400 tokens of decay: full until 700; at 800 a quarter is done, 1 - sqrt(1/4) = 1/2 of the way is left
        ("warmup_stable_decay", 400, [0, 1.0, 2.0, 2.0, 2.0, 0.2, 0.2]),
    ],
)
def test_other_kinds(kind: Literal["linear", "constant"], decay_tokens: int, expected: list[float]) -> None:
    rates = ScheduleConfig(kind=kind, lr_max=2.0, lr_min=0.2, warmup_tokens=100, decay_tokens=decay_tokens)
    rate = learning_rate(rates, 1100)
    found = [rate(tokens) for tokens in (0, 50, 100, 350, 600, 1100, 2000)]
    assert found == pytest.approx(expected)
    if decay_tokens:
        assert [rate(t) for t in (700, 800, 1001)] == pytest.approx(
            [2.0, 0.2 + 1.8 * 0.5, 0.2 + 1.8 * (1 - (301 / 400) ** 0.5)]
        )


def test_mask_rate_shapes() -> None:
    rising = MaskConfig(start_rate=0.15, peak_rate=0.30, end_rate=0.15, warmup_tokens=100)
    assert [mask_rate(rising, 1100)(t) for t in (0, 50, 100, 600, 1100)] == pytest.approx(
        [0.15, 0.225, 0.3, 0.225, 0.15]
    )
    falling = MaskConfig(warmup_tokens=0)
    assert [mask_rate(falling, 1000)(t) for t in (0, 500, 1000)] == pytest.approx([0.3, 0.225, 0.15])
    fixed = MaskConfig(start_rate=0.15, peak_rate=0.15, end_rate=0.15)
    assert {mask_rate(fixed, 1000)(t) for t in (0, 10, 999)} == {0.15}


def test_batch_size_does_not_move_the_schedules(recipe_file: Path) -> None:
    small = load_recipe(recipe_file)
    large = dataclasses.replace(small, train=dataclasses.replace(small.train, rows_per_step=32))
    few, many = Schedule.of(large), Schedule.of(small)
    assert many.num_steps == 4 * few.num_steps == 16
    assert many.learning_rate(7) == few.learning_rate(1)
    assert many.mask_rate(8) == few.mask_rate(2)
    assert many.learning_rate(0) > 0
    assert many.learning_rate(15) == pytest.approx(small.schedule.lr_min)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # it is only read
@given(
    context=st.sampled_from([8, 64]),
    start=st.integers(1, 6),
    increment=st.integers(1, 5),
    count=st.integers(0, 4),
    ramp_tokens=st.integers(1, 4000),
    total=st.integers(1, 9000),
)
def test_ramp_is_the_naive_one(
    recipe_file: Path, context: int, start: int, increment: int, count: int, ramp_tokens: int, total: int
) -> None:
    """Against a walk over the steps, one by one."""
    small = load_recipe(recipe_file)
    full = start + count * increment
    ramp = {"ramp_start_rows": start, "ramp_increment_rows": increment, "ramp_tokens": ramp_tokens} if count else {}
    train = dataclasses.replace(small.train, rows_per_step=full, total_tokens=total, **ramp)
    recipe = dataclasses.replace(small, train=train, data=dataclasses.replace(small.data, context_tokens=context))
    schedule = Schedule.of(recipe)
    rows, size, in_size, step = 0, start, 0, 0
    while rows * context < total:
        assert schedule.rows_before(step) == rows
        assert schedule.tokens_before(step) == rows * context
        assert len(schedule.rows(step)) == size
        rows, in_size, step = rows + size, in_size + size * context, step + 1
        if size < full and in_size >= ramp_tokens / count:
            size, in_size = size + increment, 0
    assert schedule.num_steps == step
