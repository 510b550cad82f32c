"""The smallest life of a run on a real Slurm; the others are in test_life_cycle.py."""

import pytest

from tests.integration.launching import trace
from tests.slurm.desk import TWO_NODES, Desk

pytestmark = pytest.mark.slurm


def test_two_nodes_train_with_zero_and_a_stop_leaves_no_trace(desk: Desk, unbroken: list[dict]) -> None:
    desk.break_lives("pause:5:1", "-")
    job = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    desk.wait_for_text(job, "paused in step 5")
    desk.slurm.call("scancel", "--signal=USR1", job)
    desk.next_life(job)
    assert desk.end(job) == "0:0", desk.output(job)
    first, _, second = desk.output(job).partition("restart 0: the ranks were asked to stop; requeued")
    for life in (first, second):
        assert "recipe.toml on 2 ranks, 2 nodes, rendezvous 127.0.0.1:" in life
        assert "preflight: 2 nodes, 2 ranks fit" in life
    assert "starting on 2 x cpu, 16 steps" in first
    assert "stopped at step 7 (SIGUSR1)" in first
    assert "resuming at step 7 " in second
    assert "restart 1: finished" in second
    checkpoint = desk.directory / "run" / "checkpoints" / "step_000000016"
    assert len(list(checkpoint.glob("*optim_states.pt"))) == 2
    assert not list(desk.directory.rglob("*.preflight"))
    logs = [desk.directory / "slurm" / "logs" / f"cmbert-stage1-{job}{life}.out" for life in (".life0", "")]
    assert sorted(desk.directory.rglob("*.out")) == sorted(logs)
    assert ["resuming at step 7 " in log.read_text(encoding="utf-8") for log in logs] == [False, True]
    assert trace(desk.directory / "run") == unbroken
