"""The stage scripts on a real Slurm: what happens to a run there, and that it equals one that nothing happened to."""

import re

import pytest

from cmbert.runs.metrics import read_events
from tests.integration.launching import trace
from tests.slurm.cluster import processes, wait_until, works_in
from tests.slurm.desk import ONE_NODE, TWO_NODES, Desk

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# Long enough for any life; a test brings the end near when the ranks are where it wants them.
TIME_LIMIT = ("--time=60", "--signal=USR1@90")


def ranks_of(desk: Desk) -> list[int]:
    """Return the processes that train or check nodes for this desk."""
    found = [pid for pid, words in processes().items() if "recipe.toml" in words and "srun" not in words[0]]
    return [pid for pid in found if works_in(pid, desk.directory)]


def test_srun_alone_starts_ranks(desk: Desk, unbroken: list[dict]) -> None:
    """Inside somebody's own allocation or script; the rendezvous comes from Slurm's variables."""
    desk.slurm.call(
        *("srun", "--nodes=2", "--ntasks=2", "--mpi=none", "./python", "-u", "-m", "cmbert", "train", "recipe.toml"),
        directory=desk.directory,
    )
    assert trace(desk.directory / "run") == unbroken


def test_a_run_that_four_things_happened_to_equals_the_unbroken_one(desk: Desk, unbroken: list[dict]) -> None:
    slurm = desk.slurm
    desk.break_lives("pause:2:1", "pause:5:0", "kill:10:1", "pause:10:0", "-")
    job = desk.submit("stage1.sh", "recipe.toml", options=(*TWO_NODES, *TIME_LIMIT))
    after = slurm.call(
        "sbatch", "--parsable", f"--dependency=afterok:{job}", "--output=/dev/null", "--wrap=true"
    ).strip()
    desk.wait_for_text(job, "paused in step 2")
    desk.end_at_limit(job, "2minutes")  # USR1 comes when slurmctld looks next
    desk.wait_for_text(job, "restart 0: the ranks were asked to stop; requeued")
    assert "stopped at step 4 (SIGUSR1)" in desk.output(job)  # the next step tells all ranks
    desk.next_life(job, "TimeLimit=60")
    desk.wait_for_text(job, "resuming at step 4 ")
    desk.wait_for_text(job, "paused in step 5")
    slurm.call("scontrol", "requeue", job)
    desk.wait_for_text(job, "restart 1: cancelled or requeued from outside")
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 7 ")
    desk.wait_for_text(job, r"restart 2: the ranks ended with code \d+; requeued")
    assert slurm.state(after) == "PENDING"
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 8 ")
    desk.wait_for_text(job, "paused in step 10")
    urgent = slurm.call(
        "sbatch", "--parsable", "-p", "urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    desk.wait_for_text(job, r"restart 3: the ranks were asked to stop; requeued")
    assert "stopped at step 12 (SIGTERM)" in desk.output(job)
    assert desk.end(urgent.strip()) == "0:0"
    desk.next_life(job)
    assert desk.end(job) == "0:0", desk.output(job)
    assert "restart 4: finished" in desk.output(job)
    assert desk.end(after) == "0:0"
    assert slurm.show(job)["Restarts"] == "4"
    assert trace(desk.directory / "run") == unbroken
    lives = [event for event in read_events(desk.directory / "run") if event["kind"] == "life"]
    assert [life["step"] for life in lives] == [0, 4, 7, 8, 12]


def test_scancel_leaves_nothing_behind(desk: Desk) -> None:
    desk.break_lives("pause:5:1")
    job = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    desk.wait_for_text(job, "paused in step 5")
    assert len(ranks_of(desk)) >= 2
    desk.slurm.call("scancel", job)
    desk.wait_for_state(job, "CANCELLED")
    wait_until(lambda: not ranks_of(desk), "the end of all ranks")
    wait_until(desk.slurm.is_idle, "idle nodes")
    assert desk.slurm.show(job)["Restarts"] == "0"
    assert "restart 0: cancelled or requeued from outside" in desk.output(job)
    assert "stopped at step 7 (SIGTERM)" in desk.output(job)  # two steps and a save fit into KillWait here
    assert desk.newest_checkpoint() == "step_000000007"


def test_a_stop_asked_for_is_not_requeued(desk: Desk) -> None:
    desk.break_lives("pause:5:0")
    job = desk.submit("stage1.sh", "recipe.toml", options=ONE_NODE)
    desk.wait_for_text(job, "paused in step 5")
    desk.slurm.call("scontrol", "update", f"jobid={job}", "Requeue=0")
    desk.slurm.call("scancel", "--signal=USR1", job)
    assert desk.end(job) == "75:0"
    assert "not requeued: the job has Requeue=0" in desk.output(job)
    elastic = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)  # the run goes on with another number of ranks
    desk.wait_for_text(elastic, "resumed a checkpoint of 1 ranks on 2")
    assert desk.end(elastic) == "0:0"


def test_a_node_that_dies_costs_the_steps_since_the_checkpoint(desk: Desk, unbroken: list[dict]) -> None:
    desk.break_lives("pause:10:0", "-")
    job = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    desk.wait_for_text(job, "paused in step 10")
    desk.slurm.lose_node("n2")
    desk.wait_for_requeue(job)  # by Slurm itself
    wait_until(lambda: not ranks_of(desk), "the end of all ranks")
    desk.slurm.start_node("n2")
    wait_until(desk.slurm.is_idle, "idle nodes")
    desk.next_life(job)
    desk.wait_for_text(job, "resuming at step 8 ")
    assert desk.end(job) == "0:0"
    assert trace(desk.directory / "run") == unbroken


def test_lives_without_progress_come_to_an_end(desk: Desk) -> None:
    desk.break_lives(*["kill:6:0"] * 9)
    lives = ("--export=ALL,CMBERT_MAX_LIVES=2",)
    job = desk.submit("stage1.sh", "recipe.toml", options=(*ONE_NODE, *lives))
    for restart in range(3):  # the first one makes a checkpoint
        desk.wait_for_text(job, rf"restart {restart}: the ranks ended with code 137")
        if restart < 2:
            desk.next_life(job)
    desk.wait_for_state(job, "FAILED")
    assert (
        "not requeued: 2 lives in a row (CMBERT_MAX_LIVES) left no checkpoint newer than step_000000004"
        in desk.output(job)
    )
    assert desk.slurm.show(job)["Restarts"] == "2"


def test_a_rank_that_hangs_is_named_and_the_job_requeued(desk: Desk) -> None:
    desk.break_lives("hang:6:1")
    job = desk.submit("stage1.sh", "recipe.toml", "--set", "guards.hang_seconds=10", options=TWO_NODES)
    desk.wait_for_text(job, "restart 0: the ranks ended with code 70; requeued")
    assert re.search("rank 0 waits .* rank 1 is .* <- look there", desk.output(job))
    assert desk.newest_checkpoint() == "step_000000004"
    desk.wait_for_requeue(job)
    wait_until(lambda: not ranks_of(desk), "the end of all ranks")


def test_a_full_disk_ends_the_job_and_the_next_one_goes_on(desk: Desk, unbroken: list[dict]) -> None:
    desk.break_lives("ulimit -f 100")  # files of at most 100 KiB
    job = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    assert desk.end(job) == "2:0"
    assert "4 checkpoints in a row could not be written" in desk.output(job)
    assert "not requeued" in desk.output(job)
    desk.break_lives("-")
    again = desk.submit("stage1.sh", "recipe.toml", options=TWO_NODES)
    assert desk.end(again) == "0:0"
    assert trace(desk.directory / "run") == unbroken


def test_a_mistake_ends_the_job_before_it_trains(desk: Desk) -> None:
    job = desk.submit("stage1.sh", "recipe.toml", "--set", "train.sed=1", options=TWO_NODES)
    assert desk.end(job) == "2:0"
    assert "train.sed: unknown key; did you mean 'seed'?" in desk.output(job)
    assert "not requeued" in desk.output(job)


def test_an_unfit_node_is_left_out_and_zero_is_not_taken_for_the_end(desk: Desk) -> None:
    desk.break_node("n1", "ulimit -f 1000")
    job = desk.submit("stage1.sh", "recipe.toml", "--max-steps", "2", options=(*ONE_NODE, "--nodelist=n1"))
    desk.wait_for_text(job, "n1 is not fit: .*: File too large")
    desk.wait_for_text(job, "requeued without n1")
    desk.break_lives("-", "leave", "-")
    desk.next_life(job, "ReqNodeList=")
    desk.wait_for_text(job, "restart 1: srun returned 0 at step 0 of 16; requeued")
    desk.next_life(job)
    assert desk.end(job) == "75:0", desk.output(job)
    assert "restart 2: stopped by --max-steps at step 2 of 16: not finished; not requeued" in desk.output(job)
    shown = desk.slurm.show(job)
    assert (shown["ExcNodeList"], shown["NodeList"]) == ("n1", "n2")


def test_gpus_that_slurm_promises_must_be_there(desk: Desk) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
    job = desk.submit("stage1.sh", "recipe.toml", options=options)
    desk.wait_for_text(job, "recipe.toml on 4 ranks, 2 nodes")
    desk.wait_for_text(job, "n2 is not fit: 0 of 2 GPUs are visible to torch")
    desk.wait_for_text(job, "restart 0: unfit nodes; requeued without n1,n2")
    desk.slurm.call("scancel", job)


def test_ranks_that_do_not_hear_the_signal_are_requeued_at_the_limit(desk: Desk) -> None:
    desk.break_lives("deaf:6:0")
    job = desk.submit("stage1.sh", "recipe.toml", options=(*ONE_NODE, *TIME_LIMIT))
    desk.wait_for_text(job, "deaf in step 6")
    desk.end_at_limit(job, "5seconds")
    desk.wait_for_text(job, "restart 0: the time limit came before the ranks had saved; requeued")
    assert desk.newest_checkpoint() == "step_000000004"
    desk.wait_for_requeue(job)
    wait_until(lambda: not ranks_of(desk), "the end of all ranks")


@pytest.mark.parametrize(("node", "rank"), [("n1", 0), ("n2", 1)])
def test_a_silent_node_is_named_by_the_others(node: str, rank: int, desk: Desk) -> None:
    desk.break_node(node, "exit 127")
    limit = ("--export=ALL,CMBERT_PREFLIGHT_SECONDS=15",)
    job = desk.submit("stage1.sh", "recipe.toml", options=(*TWO_NODES, *limit))
    desk.wait_for_text(job, f"{node}.* rank {rank} did not answer")
    desk.wait_for_text(job, f"requeued without {node}")
    wait_until(lambda: desk.slurm.show(job)["ExcNodeList"] == node, "the node is excluded")
    assert not ranks_of(desk)
    desk.slurm.call("scancel", job)
