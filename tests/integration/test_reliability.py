"""The fault table of docs/reliability.md, row by row: what is broken on purpose, and what the run makes of it."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.cluster.watchdog import EXIT_HUNG
from cmbert.config.load import load_recipe
from cmbert.runs.metrics import read_events, read_metrics
from cmbert.train.guards import LEAST_HISTORY
from tests.integration.launching import deepspeed_file, losses, settings, start, trace, train


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step_"))


def kinds(run: Path) -> list[str]:
    return [event["kind"] for event in read_events(run)]


@pytest.fixture
def unbroken(recipe_file: Path, reference: Callable[..., Path]) -> list[dict]:
    """What the recipe's 16 steps give when nothing happens."""
    return trace(reference(recipe_file))


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_elastic_resume(recipe_file: Path, tmp_path: Path, unbroken: list[dict], stage: int) -> None:
    setting = settings(deepspeed_file(tmp_path, stage), "train.micro_batch_rows=1")
    train(recipe_file, *setting, "--max-steps", "5", ranks=2)
    refused = train(recipe_file, *setting, ranks=3, code=1)
    assert "8 rows do not divide over 3 GPUs (ranks); nearest that work: 2 or 4 GPUs" in refused
    on_four = train(recipe_file, *setting, "--max-steps", "5", ranks=4)
    assert "resumed a checkpoint of 2 ranks on 4" in on_four
    on_one = train(recipe_file, *setting)
    assert "resuming at step 10" in on_one
    assert "resumed a checkpoint of 4 ranks on 1" in on_one
    found = trace(tmp_path / "run")
    for record, expected in zip(found, unbroken, strict=True):
        exact = ("learning_rate", "mask_rate", "masked_tokens", "real_tokens", "tokens")
        assert {key: record[key] for key in exact} == {key: expected[key] for key in exact}
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert kinds(tmp_path / "run") == ["elastic resume"] * 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "half of the state"])
def test_a_damaged_checkpoint_is_passed_over_loudly(
    recipe_file: Path, tmp_path: Path, unbroken: list[dict], damage: str
) -> None:
    train(recipe_file, "--max-steps", "9")
    run = tmp_path / "run"
    newest = run / "checkpoints" / "step_000000009"
    path = newest / "state.json" if damage == "half of the state" else next(newest.glob("*optim_states.pt"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])
    output = train(recipe_file)
    assert f"damaged checkpoint, quarantined as {newest}.damaged" in output
    assert "resuming at step 8" in output
    assert kinds(run) == ["damaged checkpoint"]
    assert trace(run) == unbroken
    latest = run / "checkpoints" / "latest"
    assert (latest.parent / latest.read_text(encoding="utf-8").strip() / "MANIFEST.json").is_file()
    named = train(recipe_file, "--resume", str(run / "checkpoints" / "step_000000008"), "--max-steps", "1")
    assert "resuming at step 8" in named
    for path in run.glob("checkpoints/step_*/*optim_states.pt"):
        path.write_bytes(b"")
    none_whole = train(recipe_file, code=2)
    assert "no other checkpoint is whole" in none_whole


def test_a_full_disk_costs_checkpoints_not_training(recipe_file: Path, tmp_path: Path, unbroken: list[dict]) -> None:
    run = tmp_path / "run"
    train(recipe_file, "--max-steps", "4")
    setting = settings("train.checkpoint_every_steps=2", "train.max_failed_saves=3")
    output = train(recipe_file, *setting, code=2, limit_file_bytes=60_000)
    assert "4 checkpoints in a row could not be written (rank 0: " in output
    assert "_states.pt: File too large (write)); make room there, then run the same command again" in output
    # saves of steps 6, 8, 10 failed and training went on; that of 12 ended it, as soon as its thread had said so
    assert 12 <= len(read_metrics(run)) <= 14
    assert kinds(run) == ["failed save"] * 3
    assert checkpoints(run) == ["step_000000004"]
    assert not list((run / "checkpoints").glob(".*"))
    train(recipe_file, *setting)
    assert trace(run) == unbroken


def test_a_gradient_that_is_not_finite_moves_nothing(recipe_file: Path, tmp_path: Path) -> None:
    for stage, bf16 in ((1, False), (1, True), (2, True), (3, False)):
        run = tmp_path / f"zero{stage}{bf16}"
        setting = settings(deepspeed_file(tmp_path, stage, bf16), f"run_directory={run}")
        output = train(recipe_file, *setting, "--max-steps", "9", ranks=2, fault="nan:5:1")
        assert "step 5: not finite" in output
        assert "not applied (1 so far)" in output
        records = read_metrics(run)
        assert [record["skipped_steps"] for record in records] == [0] * 5 + [1] * 4
        assert all(record["loss"] == record["loss"] for record in records)  # no NaN got into the weights
        assert kinds(run) == ["not finite"]


def test_spikes_are_skipped_or_rewound(recipe_file: Path, tmp_path: Path) -> None:
    spike = LEAST_HISTORY + 3
    long = ("train.total_tokens=16384", "guards.spike_window_steps=16")
    skipping, rewinding = tmp_path / "skipping", tmp_path / "rewinding"
    setting = settings(*long, "guards.spike_action=skip", f"run_directory={skipping}")
    train(recipe_file, *setting, "--max-steps", "24", ranks=2, fault=f"spike:{spike}:0")
    assert kinds(skipping) == ["spike"]
    assert [r["skipped_rows"] for r in read_metrics(skipping)] == [0] * 24

    setting = settings(*long, "guards.spike_action=rewind", "guards.rewind_steps=2", f"run_directory={rewinding}")
    output = train(recipe_file, *setting, "--max-steps", "24", ranks=2, fault=f"spike:{spike}:0")
    assert f"the batches of steps {spike - 1} to {spike} stay out" in output
    assert kinds(rewinding) == ["spike", "rewind"]
    left = [8 * number for number in range(26) if number not in (spike - 1, spike)]
    assert [r["first_row"] for r in read_metrics(rewinding)] == left
    # as if the batches had been left out from the start, by hand
    by_hand = tmp_path / "by_hand"
    setting = settings(*long, f"run_directory={by_hand}")
    train(recipe_file, *setting, "--max-steps", "16", ranks=2)
    train(recipe_file, *setting, "--skip-steps", f"{spike - 1}:{spike + 1}", "--max-steps", "8", ranks=2)
    assert losses(rewinding) == losses(by_hand)


def test_a_rewind_stays_with_the_checkpoints_that_the_run_comes_from(recipe_file: Path, tmp_path: Path) -> None:
    """A run that was taken back to an older checkpoint must not load what it left behind."""
    run, spike = tmp_path / "run", LEAST_HISTORY + 3
    before = run / "checkpoints" / f"step_{spike // 4 * 4:09d}"
    setting = settings("train.total_tokens=16384", "guards.spike_action=rewind", "train.keep_checkpoints=9")
    train(recipe_file, *setting, "--max-steps", str(spike + 6))
    output = train(recipe_file, *setting, "--resume", str(before), "--max-steps", "8", fault=f"spike:{spike}:0")
    assert f"back to {before}; the batches of steps" in output
    assert kinds(run)[-2:] == ["spike", "rewind"]


# torchrun waits half a minute for a stopped rank before it kills it
@pytest.mark.parametrize("fault", ["hang", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_hung_rank_ends_the_run(recipe_file: Path, tmp_path: Path, fault: str) -> None:
    setting = settings("guards.hang_seconds=6")
    output = train(recipe_file, *setting, ranks=2, fault=f"{fault}:10:1", code=1)
    assert "look there" in output
    assert f"exitcode  : {EXIT_HUNG}" in output or f"exitcode: {EXIT_HUNG}" in output
    stacks = sorted((tmp_path / "run" / "logs").glob("rank_*_stacks.txt"))
    assert stacks
    assert any("train_step" in path.read_text(encoding="utf-8") for path in stacks)
    assert re.search("resuming at step [48] ", train(recipe_file, ranks=2))


# in step 10 a checkpoint is there: the save of step 8 began when that of step 4 was published
@pytest.mark.parametrize("fault", ["kill:10:1", "save_kill:8:1", "save_kill:8:0", "clock:5:0"])
def test_faults_after_which_the_same_command_goes_on(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], fault: str
) -> None:
    process = start(recipe_file, ranks=2, fault=fault)
    output, _ = process.communicate(timeout=240)
    assert (process.returncode == 0) == fault.startswith("clock"), output
    if process.returncode:
        assert re.search("resuming at step [48] ", train(recipe_file, ranks=2))
    assert trace(tmp_path / "run") == trace(reference(recipe_file, ranks=2))


@pytest.mark.parametrize("fault", ["term_twice:5:1", "save_term:4:0", "eval_term:6:0", "data_term:6:0"])
def test_signals_at_any_time_and_twice(recipe_file: Path, tmp_path: Path, unbroken: list[dict], fault: str) -> None:
    rank = int(fault[-1])
    shards = load_recipe(recipe_file).data.sources[0].path
    held_out = settings(f"evaluation.shards={shards}", "evaluation.every_steps=6", "evaluation.max_rows=4")
    process = start(recipe_file, *held_out, ranks=1 + rank, fault=fault)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == (EXIT_STOPPED if rank == 0 else 1), output  # torchrun makes 1 of every code
    assert "stopped at step" in output
    done = len(read_metrics(tmp_path / "run"))
    assert done <= 8  # that step, the next one that tells all ranks, and the one launched meanwhile
    assert f"resuming at step {done}" in train(recipe_file, ranks=1 + rank)
    if rank == 0:
        assert trace(tmp_path / "run") == unbroken


def test_a_shard_damaged_in_mid_run(recipe_file: Path, tmp_path: Path, unbroken: list[dict]) -> None:
    sound = Path(load_recipe(recipe_file).data.sources[0].path)
    shards = tmp_path / "shards"
    shutil.copytree(sound, shards)
    text = recipe_file.read_text(encoding="utf-8").replace(str(sound), str(shards))
    recipe_file.write_text(text, encoding="utf-8")
    train(recipe_file, "--max-steps", "4")
    for path in shards.glob("*.bin"):
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    output = train(recipe_file, code=2)
    assert str(shards) in output
    assert checkpoints(tmp_path / "run") == ["step_000000004"]
    for path in shards.glob("*.bin"):
        shutil.copy2(sound / path.name, path)
    train(recipe_file)
    assert trace(tmp_path / "run") == unbroken


def test_ephemeral_and_permanent_checkpoints(recipe_file: Path, tmp_path: Path, unbroken: list[dict]) -> None:
    setting = settings("train.ephemeral_every_steps=1", "train.keep_checkpoints=1", "train.keep_every_tokens=2048")
    process = start(recipe_file, *setting, fault="kill:11:0")
    process.communicate(timeout=240)
    run = tmp_path / "run"
    assert checkpoints(run) == ["step_000000004", "step_000000008", "step_000000010"] or checkpoints(run) == [
        "step_000000004", "step_000000008", "step_000000011",
    ]  # fmt: skip
    train(recipe_file, *setting)
    assert trace(run) == unbroken
    assert checkpoints(run) == ["step_000000004", "step_000000008", "step_000000012", "step_000000016"]


def test_a_run_directory_that_cannot_be_written(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory", encoding="utf-8")
    output = train(recipe_file, "--set", f"run_directory={tmp_path}/file/run", code=2)
    assert output.count("error:") == 1
    assert "Traceback" not in output
    if os.geteuid() != 0:  # root writes anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        output = train(recipe_file, "--set", f"run_directory={tmp_path}/closed/run", code=2)
        assert "Permission denied" in output


def test_offload_is_the_same_run(recipe_file: Path, tmp_path: Path) -> None:
    """The shipped files; without a GPU both keep everything in host memory, so that every bit of a loss must agree.

    The norm is a sum over partitions, whose order of addition differs on some CPUs (in the eighth digit on a Xeon).
    """
    found = []
    for name in ("zero2", "zero2_offload", "zero3_offload"):
        setting = settings(f"train.deepspeed=ds_configs/{name}.json", f"run_directory={tmp_path}/{name}")
        for _ in range(2):  # with a resume
            train(recipe_file, *setting, "--max-steps", "3", ranks=2)
        found.append(trace(tmp_path / name))
    norms = [[record.pop("grad_norm") for record in records] for records in found]
    assert found[0] == found[1] == found[2]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert norms[2] == pytest.approx(norms[0], rel=1e-6)
