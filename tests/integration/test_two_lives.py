"""Two trainings, one run directory: one of them writes, the other touches nothing and says who has it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.checkpoint.files import find_checkpoint
from cmbert.errors import EXIT_LEASE_LOST
from cmbert.runs.metrics import read_events, read_metrics
from tests.integration.launching import settings, start, trace, train, wait_for_output

RANKS = (1, pytest.param(2, marks=pytest.mark.slow))


def lease_of(run: Path) -> dict:
    """Return what the one lease of a run says."""
    (path,) = run.glob("lease.*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def wait_until_stopped(process: subprocess.Popen, run: Path) -> int:
    """Wait until rank 0 is stopped by a signal; return its process number."""
    while process.poll() is None:
        if list(run.glob("lease.*.json")):
            pid = lease_of(run)["pid"]
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T":
                return pid
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


def contents(run: Path) -> dict[str, bytes]:
    """Return every file of a run directory; TensorBoard's are each of one life alone."""
    files = [path for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("ranks", RANKS)
def test_a_second_start_is_refused_and_harms_nothing(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    first = start(recipe_file, ranks=ranks, fault="wait:10:0")
    wait_for_output(first, "waiting in step 10")
    before = contents(run)
    monkeypatch.setenv("SLURM_JOB_ID", "72")
    refused = train(recipe_file, ranks=ranks, code=2 if ranks == 1 else 1)
    pid = lease_of(run)["pid"]
    assert f"{run}: is written by job 71, life 0 on {lease_of(run)['host']} (process {pid}, since " in refused
    assert "stop that, or choose another directory" in refused
    assert refused.count("Traceback") == (ranks > 1)  # torchrun's own
    assert contents(run) == before
    (run / "go").touch()
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 0, output
    assert trace(run) == trace(reference(recipe_file, ranks=ranks))
    assert lease_of(run)["released"]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("step", [6, 8])  # before a save begins; while one is on its way
def test_an_older_life_that_wakes_up_ends_without_touching_anything(
    recipe_file: Path,
    tmp_path: Path,
    reference: Callable[..., Path],
    ranks: int,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, expected = tmp_path / "run", trace(reference(recipe_file, ranks=ranks))
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    older = start(recipe_file, ranks=ranks, fault=f"stop:{step}:0")
    stopped = wait_until_stopped(older, run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    output = train(recipe_file, "--max-steps", "7", ranks=ranks)
    assert "is life 1 of the same job" in output
    begun = int(output.partition("resuming at step ")[2].split()[0])
    assert begun in (4, step)
    before = contents(run)
    os.kill(stopped, signal.SIGCONT)
    output, _ = older.communicate(timeout=240)
    assert older.returncode == (EXIT_LEASE_LOST if ranks == 1 else 1), output
    assert f"{run}: job 71, life 1 on " in output
    assert "has taken it over; this run ends here and leaves all of it as it is" in output
    assert output.count("Traceback") == (ranks > 1)  # torchrun's own
    assert f"exitcode  : {EXIT_LEASE_LOST}" in output or ranks == 1
    assert contents(run) == before
    assert trace(run) == expected[: begun + 7]
    train(recipe_file, ranks=ranks)
    assert trace(run) == expected


def test_a_run_that_goes_back_keeps_what_it_leaves_behind(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    root, setting = run / "checkpoints", settings("train.keep_checkpoints=9")
    train(recipe_file, *setting, "--max-steps", "13")
    train(recipe_file, *setting, "--resume", str(root / "step_000000004"), fault="kill:6:0", code=-signal.SIGKILL)
    # it has published nothing, and is not forgotten: the next start goes on from where it went back to
    left = sorted(path.name for path in root.iterdir() if path.suffix == ".left")
    assert left == ["step_000000008.left", "step_000000012.left", "step_000000013.left"]
    assert [event["kind"] for event in read_events(run)] == ["left behind"] * 3
    assert find_checkpoint(run) == root / "step_000000004"
    assert (root / "latest").read_text(encoding="utf-8") == "step_000000004\n"
    output = train(recipe_file, *setting, "--max-steps", "5")
    assert "resuming at step 4" in output
    assert find_checkpoint(run) == root / "step_000000009"
    assert "resuming at step 9" in train(recipe_file, *setting)
    assert trace(run) == trace(reference(recipe_file))
    assert sorted(path.name for path in root.iterdir() if path.suffix == ".left") == left


def test_what_a_job_was_told_its_first_life_does(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm repeats the command line in every life; only a life before any checkpoint of the job's did not do it."""
    run, setting = tmp_path / "run", settings("train.keep_checkpoints=9")
    train(recipe_file, *setting, "--max-steps", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    command = [recipe_file, *setting, "--resume", str(run / "checkpoints" / "step_000000004"), "--skip-steps", "5:7"]
    train(*command, fault="kill:6:0", code=-signal.SIGKILL)
    for life, begun, done in ((1, 4, 6), (2, 10, 3), (3, 13, 9)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(life))
        assert f"resuming at step {begun}" in train(*command, "--max-steps", str(done))
    assert [record["skipped_rows"] for record in read_metrics(run)] == [0] * 5 + [16] * 11
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert "resuming at step 4" in train(*command, "--max-steps", "1"), "another command goes back again"


def test_a_job_that_begins_afresh_does_so_once(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    train(recipe_file, "--resume", "never", "--max-steps", "3")
    assert "and --resume never was given" in train(recipe_file, "--resume", "never", code=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "resuming at step 3" in train(recipe_file, "--resume", "never", "--max-steps", "1")


def test_a_kill_before_latest_is_written_loses_nothing(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe_file, "--max-steps", "9")
    latest = run / "checkpoints" / "latest"
    latest.write_text("step_000000004\n", encoding="utf-8")
    assert "resuming at step 9" in train(recipe_file, "--max-steps", "1")
    assert latest.read_text(encoding="utf-8") == "step_000000010\n"
    assert len(read_metrics(run)) == 10
