"""Checkpoints and failures: the closed form, the simulation, and a naive one that plays every checkpoint."""

import math

import numpy as np
import pytest

from cmbert.config.load import load_recipe
from cmbert.plan.assumptions import NODE_MTBF_HOURS, Assumptions
from cmbert.plan.failures import best_interval, lost_shares, make_failures
from tests.cmbert.plan.test_refusals import LARGE

HOUR = 3600.0
SIMULATED_FAILURES = 20_000  # of one simulation: its share of lost time is then known to about a hundredth


def simulate(
    interval: float,
    stall: float,
    write: float,
    restart: float,
    mtbf: float,
    *,
    num_failures: int = SIMULATED_FAILURES,
    seed: int = 0,
) -> float:
    """Return the share of productive time that is lost, from `num_failures` drawn failures; seconds.

    Plays the run from failure to failure: restart, then whole cycles of work and stall until the next; what counts is
    the newest checkpoint whose files were there.
    """
    random = np.random.default_rng(seed)
    cycle, clock, saved = interval + stall, 0.0, 0.0
    pending = restart  # of the restart that is still to do
    for gap in random.exponential(mtbf, num_failures).tolist():
        clock += gap
        up = gap - pending
        pending = restart
        if up < cycle + write:
            continue
        saved += interval * math.floor((up - write) / cycle)
    return clock / saved - 1 if saved else math.inf


def play_every_checkpoint(
    interval: float, stall: float, write: float, restart: float, mtbf: float, num_failures: int, seed: int
) -> float:
    """Go through the run event by event: the naive reference of `simulate`."""
    clock = saved = 0.0
    for gap in np.random.default_rng(seed).exponential(mtbf, num_failures).tolist():
        fails = clock + gap
        now = clock + restart
        work = durable = saved
        if now < fails:
            while True:
                now += interval
                work += interval
                now += stall  # the copy is taken
                if now + write > fails:
                    break
                durable = work
        clock, saved = fails, durable
    return clock / saved - 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("write", [0.0, 30.0, 2_000.0])
def test_the_simulation_is_the_naive_one(seed: int, write: float) -> None:
    times = (900.0, 20.0, write, 600.0, 3 * HOUR)
    naive = play_every_checkpoint(*times, num_failures=500, seed=seed)
    assert simulate(*times, num_failures=500, seed=seed) == pytest.approx(naive, rel=1e-9)


def test_the_simulation_is_the_same_every_time() -> None:
    times = (900.0, 20.0, 30.0, 600.0, 3 * HOUR)
    assert simulate(*times) == simulate(*times)
    assert simulate(*times, seed=1) != simulate(*times, seed=2)


@pytest.mark.parametrize("mtbf_hours", [3.0, 100.0, 1_000.0])
@pytest.mark.parametrize(("write", "restart"), [(0.0, 0.0), (0.0, 600.0), (30.0, 600.0)])
@pytest.mark.parametrize("times_best", [0.3, 1.0, 3.0])
def test_closed_form_and_simulation_agree(mtbf_hours: float, write: float, restart: float, times_best: float) -> None:
    interval = times_best * best_interval(20.0, mtbf_hours * HOUR)
    times = (interval, 20.0, write, restart, mtbf_hours * HOUR)
    assert simulate(*times) == pytest.approx(sum(lost_shares(*times)), rel=0.03)


@pytest.mark.parametrize("mtbf_hours", [1.0, 10.0, 900.0])
@pytest.mark.parametrize("stall", [1.0, 30.0])
def test_no_interval_loses_less_than_the_best(mtbf_hours: float, stall: float) -> None:
    best = best_interval(stall, mtbf_hours * HOUR)
    assert best == pytest.approx((2 * stall * mtbf_hours * HOUR) ** 0.5, rel=0.1)  # Young's
    lost = sum(lost_shares(best, stall, 10.0, 600.0, mtbf_hours * HOUR))
    grid = [best * factor for factor in np.geomspace(0.05, 20, 400)]
    least = min(sum(lost_shares(interval, stall, 10.0, 600.0, mtbf_hours * HOUR)) for interval in grid)
    assert lost <= 1.001 * least


def test_the_best_of_the_simulation_is_the_closed_forms() -> None:
    """With the same failures for all intervals; the minimum is flat, so what counts is what is lost there."""
    mtbf, stall = 3 * HOUR, 20.0
    best = best_interval(stall, mtbf)
    found = {factor: simulate(factor * best, stall, 10.0, 600.0, mtbf) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert min(found, key=lambda factor: found[factor]) == 1.0


def test_a_stall_longer_than_life() -> None:
    assert best_interval(3 * HOUR, HOUR) == HOUR


def test_more_of_anything_bad_loses_more() -> None:
    usual = {"interval": 900.0, "stall": 20.0, "write": 30.0, "restart": 600.0, "mtbf": 10 * HOUR}
    lost = sum(lost_shares(**usual))
    for name, value in (("stall", 40.0), ("write", 60.0), ("restart", 1200.0), ("mtbf", 5 * HOUR)):
        worse = usual | {name: value}
        assert sum(lost_shares(**worse)) > lost
        assert simulate(**worse) > simulate(**usual)


def test_failures_of_large() -> None:
    assert pytest.approx(6_334.6, abs=0.1) == NODE_MTBF_HOURS
    recipe = load_recipe(LARGE)
    found = make_failures(recipe, 56, 40.0, Assumptions())
    assert (found.num_nodes, found.job_mtbf_hours) == (7, NODE_MTBF_HOURS / 7)
    assert found.expected == pytest.approx(40 * 7 / NODE_MTBF_HOURS)
    best, checkpoint, ephemeral = found.lost_times
    assert [lost.name for lost in found.lost_times] == ["best", "checkpoint_every_steps", "ephemeral_every_steps"]
    assert (checkpoint.interval_steps, ephemeral.interval_steps) == (1000, 200)
    assert best.lost_share < checkpoint.lost_share < ephemeral.lost_share
    mtbf = 3600 * found.job_mtbf_hours
    for lost in found.lost_times:
        assert lost.lost_share == pytest.approx(lost.stall_share + lost.redone_share + lost.restart_share)
        assert lost.lost_hours == pytest.approx(40 * lost.lost_share)
        assert simulate(lost.interval_seconds, 1.0, 10.0, 600.0, mtbf) == pytest.approx(lost.lost_share, rel=0.03)
    many = make_failures(recipe, 1232, 3.0, Assumptions())
    assert many.best_interval_seconds < found.best_interval_seconds
    assert min(share for _, share in many.curve) > min(share for _, share in found.curve)
    without = load_recipe(LARGE, ["train.ephemeral_every_steps=0"])
    assert len(make_failures(without, 56, 40.0, Assumptions()).lost_times) == 2


def test_a_stage_that_is_over_before_a_checkpoint_pays_needs_none() -> None:
    """Of a stage of seconds no thousands of percent are lost to the stall of checkpoints that nobody needs."""
    recipe = load_recipe(LARGE)
    long = make_failures(recipe, 8, 4.0, Assumptions())
    assert long.needless == ""
    short = make_failures(recipe, 8, 0.05, Assumptions())
    assert short.lost_times == ()
    assert short.needless.startswith("n/a: the stage is over in 3.0 min, and the best interval between checkpoints is")
    assert short.expected == pytest.approx(0.05 / NODE_MTBF_HOURS)
    assert all(lost.lost_share < 1 for lost in long.lost_times)
