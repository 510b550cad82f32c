"""Seconds of a step on more GPUs: volumes and times by hand, a naive ring, and where the table ends."""

import dataclasses
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.plan import Plan, make_plan
from cmbert.plan.scaling import Volumes, communication_seconds, step_volumes

RECIPES = Path(__file__).parents[3] / "recipes" / "large"
BF16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
NO_LATENCY = Assumptions(hop_microseconds=1e-12)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_recipe(RECIPES / "stage1.toml"), 56)


def test_volumes_are_the_papers() -> None:
    """Per micro-batch, in parameters moved: 2 and 1 at ZeRO 1 and 2 (all-reduce, gather), 3 at ZeRO 3."""
    first, second, third = (step_volumes(1_000, BF16, stage, accumulation=4) for stage in (1, 2, 3))
    assert (first.all_reduced, first.gathered) == (2_000, 2_000)
    assert (second.all_reduced, second.gathered) == (8_000, 2_000)
    assert (third.all_reduced, third.gathered) == (0, 4 * 3 * 2_000)
    assert step_volumes(1_000, {"zero_optimization": {"stage": 1}}, 1, 1).all_reduced == 4_000  # fp32
    cut = {**BF16, "zero_optimization": {"stage": 1, "reduce_bucket_size": 300}}
    assert step_volumes(1_000, cut, 1, 1).messages == 2 * 4 + 1


def ring_bytes(message: float, num_ranks: int, *, all_reduce: bool) -> float:
    """Send a message around a ring, part by part; return the bytes that leave one rank."""
    part, sent = message / num_ranks, 0.0
    for _ in range(2 if all_reduce else 1):  # reduce-scatter, then all-gather
        for _ in range(num_ranks - 1):
            sent += part
    return sent


@pytest.mark.parametrize("num_gpus", [1, 2, 8])
def test_inside_a_node_it_is_a_ring(num_gpus: int) -> None:
    volumes = Volumes(all_reduced=3e9, gathered=1e9, messages=3)
    sent = ring_bytes(3e9, num_gpus, all_reduce=True) + ring_bytes(1e9, num_gpus, all_reduce=False)
    assert communication_seconds(volumes, num_gpus, NO_LATENCY) == pytest.approx(sent / 450e9)


@pytest.mark.parametrize("num_nodes", [2, 3, 64])
def test_between_nodes_each_gpu_has_its_part(num_nodes: int) -> None:
    volumes = Volumes(all_reduced=8e9, gathered=0.0, messages=2)
    inside, between = ring_bytes(8e9, 8, all_reduce=True), ring_bytes(1e9, num_nodes, all_reduce=True)
    found = communication_seconds(volumes, 8 * num_nodes, NO_LATENCY)
    assert found == pytest.approx(inside / 450e9 + between / 50e9)
    hops = 2 * (7 + num_nodes - 1)
    assert communication_seconds(volumes, 8 * num_nodes, Assumptions()) == pytest.approx(found + hops * 10e-6)


def test_the_table_of_large(plan: Plan) -> None:
    points = plan.scaling.points
    assert [point.num_gpus for point in points] == [8, 16, 32, 64, 112, 224, 448, 1232]
    for point in points:
        rows = point.num_gpus * point.accumulation * point.micro_batch_rows
        assert rows == 4928
        assert point.micro_batch_rows <= 44
        work = point.num_gpus * point.compute_seconds * plan.num_steps
        assert work / 3600 == pytest.approx(plan.gpu_hours)
        assert point.efficiency == pytest.approx(points[0].gpu_hours / point.gpu_hours)
    assert [point.micro_batch_rows for point in points[-1:]] == [4]
    efficiencies = [point.efficiency for point in points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[0] == 1


def test_the_sentence_says_where_it_ends(plan: Plan) -> None:
    assert "below 90% of 8 GPUs' efficiency from 352 GPUs on" in plan.scaling.limit
    assert "beyond 4,928 GPUs the batch of 4,928 rows no longer divides" in plan.scaling.limit
    slow = make_plan(load_recipe(RECIPES / "stage1.toml"), 56, Assumptions(bandwidth_gbits=25.0))
    assert "below 50%" in slow.scaling.limit
    for fast_point, slow_point in zip(plan.scaling.points[1:], slow.scaling.points[1:], strict=True):
        assert slow_point.efficiency < fast_point.efficiency
        assert slow_point.compute_seconds == fast_point.compute_seconds


def test_a_measured_mfu_scales_computation_alone(plan: Plan) -> None:
    faster = make_plan(load_recipe(RECIPES / "stage1.toml"), 56, Assumptions(mfu=0.66))
    for point, fast in zip(plan.scaling.points, faster.scaling.points, strict=True):
        assert fast.compute_seconds == pytest.approx(point.compute_seconds / 2)
        assert fast.communication_seconds == point.communication_seconds
    assert faster.gpu_hours == pytest.approx(plan.gpu_hours / 2)


def test_micro_batches_shrink_to_fit(plan: Plan) -> None:
    small = make_plan(
        load_recipe(RECIPES / "stage1.toml", ["train.micro_batch_rows=1"]), 56, Assumptions(gpu_memory_gb=8.0)
    )
    assert {point.micro_batch_rows for point in small.scaling.points} == {1}
    ramped = ["train.ramp_start_rows=616", "train.ramp_increment_rows=616", "train.ramp_tokens=10_000_000_000"]
    ramp = make_plan(load_recipe(RECIPES / "stage1.toml", ramped), 56)
    assert all(616 % (point.num_gpus * point.micro_batch_rows) == 0 for point in ramp.scaling.points)
    assert dataclasses.asdict(ramp.scaling)["points"]


def test_a_batch_smaller_than_a_node() -> None:
    overrides = ["train.rows_per_step=4", "train.micro_batch_rows=1", "train.total_tokens=1_000_000_000"]
    overrides += ["mask.warmup_tokens=0", "schedule.warmup_tokens=0"]
    few = make_plan(load_recipe(RECIPES / "stage1.toml", overrides), 4)
    assert few.scaling.points == ()
    assert few.scaling.limit == "the batch of 4 rows divides over no whole node of 8 GPUs"
