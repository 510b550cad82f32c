"""The stage scripts on a real Slurm: what happens to a run there, and that it equals one that nothing happened to."""

from pathlib import Path

import pytest

from cmbert.train.metrics import read_events
from tests.integration.launching import trace
from tests.slurm.cluster import Cluster, is_alive, processes
from tests.slurm.desk import SMALL, Desk

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TWO_NODES = ("--nodes=2", *SMALL)
ONE_NODE = ("--nodes=1", *SMALL)
TIME_LIMIT = ("--time=1", "--signal=USR1@50")  # USR1 comes after 10 to 40 s, the limit after 60 to 90


@pytest.fixture
def desk(slurm: Cluster, tmp_path: Path, recipe_file: Path) -> Desk:
    return Desk(slurm, tmp_path)


@pytest.fixture(scope="module")
def unbroken() -> list[dict]:
    """Filled by the first test with the trace of a run that nothing happened to."""
    return []


def ranks_of(desk: Desk) -> list[int]:
    """Return the processes that train or check nodes for this desk."""
    return [pid for pid, words in processes().items() if str(desk.directory / "recipe.toml") in words and is_alive(pid)]


def test_two_nodes_train_with_zero(desk: Desk, unbroken: list[dict]) -> None:
    job = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    assert desk.end(job) == "0:0", desk.output(job)
    text = desk.output(job)
    assert "recipe.toml on 2 ranks, 2 nodes, rendezvous 127.0.0.1:" in text
    assert "preflight: 2 nodes, 2 ranks fit" in text
    assert "starting on 2 x cpu, 16 steps" in text
    assert "restart 0: finished" in text
    checkpoint = desk.directory / "run" / "checkpoints" / "step_000000016"
    assert len(list(checkpoint.glob("*optim_states.pt"))) == 2
    assert not list(desk.directory.glob("*.preflight"))
    unbroken += trace(desk.directory / "run")


def test_a_run_that_four_things_happened_to_equals_the_unbroken_one(desk: Desk, unbroken: list[dict]) -> None:
    slurm = desk.slurm
    desk.break_lives("pause:2:1", "pause:5:0", "kill:9:1", "pause:10:0", "-")
    job = desk.submit("stage1.sh", "recipe.toml", options=(*TWO_NODES, *TIME_LIMIT))
    after = slurm.call(
        "sbatch", "--parsable", f"--dependency=afterok:{job}", "--output=/dev/null", "--wrap=true"
    ).strip()
    desk.wait_for_text(job, "paused in step 2")
    desk.wait_for_text(job, "restart 0: the ranks were asked to stop; requeued")
    assert "stopped at step 3 (SIGUSR1)" in desk.output(job)
    slurm.call("scontrol", "update", f"jobid={job}", "TimeLimit=60")  # the first life was short enough
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 3 ")
    desk.wait_for_text(job, "paused in step 5")
    slurm.call("scontrol", "requeue", job)
    desk.wait_for_text(job, "restart 1: cancelled or requeued from outside")
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 6 ")
    desk.wait_for_text(job, r"restart 2: the ranks ended with code \d+; requeued")
    assert slurm.state(after) == "PENDING"
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 8 ")
    desk.wait_for_text(job, "paused in step 10")
    urgent = slurm.call(
        "sbatch", "--parsable", "-p", "urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    desk.wait_for_text(job, r"restart 3: the ranks were asked to stop; requeued")
    assert "stopped at step 11 (SIGTERM)" in desk.output(job)
    assert desk.end(urgent.strip()) == "0:0"
    desk.next_life(job)
    assert desk.end(job) == "0:0", desk.output(job)
    assert "restart 4: finished" in desk.output(job)
    assert desk.end(after) == "0:0"
    assert slurm.show(job)["Restarts"] == "4"
    assert trace(desk.directory / "run") == unbroken
    lives = [event for event in read_events(desk.directory / "run") if event["kind"] == "life"]
    assert [life["step"] for life in lives] == [0, 3, 6, 8, 11]
