"""Training under real launchers on CPU: ZeRO stages agree, kill and resume is bitwise, the ledger has all rows."""

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.weights import load_weights
from cmbert.cli import main
from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.ledger import read_record
from cmbert.data.reader import open_reader
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.runs.metrics import read_metrics
from cmbert.schedule import Schedule
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.zero.groups import build_optimizer
from tests.integration.launching import (
    children,
    deepspeed_file,
    losses,
    settings,
    start,
    trace,
    train,
    wait_for_output,
)


def train_naively(recipe: Recipe) -> tuple[list[float], MaskedLanguageModel]:
    """The reference: plain torch in one process, one loss over the whole step, no DeepSpeed, no micro-batches."""
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    reader = open_reader(recipe.data, recipe.mask, tokenizer, recipe.train.seed)
    model = MaskedLanguageModel(recipe.model)
    initialise(model, recipe.train.seed)
    optimizer = build_optimizer(model, recipe.optimizer)
    found, rows, schedule = [], recipe.train.rows_per_step, Schedule.of(recipe)
    for step in range(schedule.num_steps):
        batch = reader.micro_batch(range(step * rows, (step + 1) * rows), schedule.mask_rate(step))
        loss = model(*batch)[0] / len(batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found, model


def test_the_numbers_of_a_step(recipe_file: Path, other_shards: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    text = text.replace("[schedule]", f'[[data.sources]]\npath = "{other_shards}"\n[schedule]')
    recipe_file.write_text(text, encoding="utf-8")
    found = []
    for ranks, stage in ((1, 1), (2, 3)):
        run = tmp_path / f"run{ranks}"
        settings = ("--set", deepspeed_file(tmp_path, stage), "--set", f"run_directory={run}", "--max-steps", "3")
        train(recipe_file, *settings, ranks=ranks)
        found.append(read_metrics(run))
    for alone, together in zip(*found, strict=True):
        assert None not in alone["source_loss"]
        assert together["source_loss"] == pytest.approx(alone["source_loss"], rel=1e-5)
        for record in (alone, together):
            low, high = sorted(record["source_loss"])
            assert low < record["loss"] < high
            phases = [record[f"{name}_seconds"] for name in ("forward", "backward", "optimizer")]
            assert all(seconds > 0 for seconds in phases)
            assert sum(phases) < record["step_seconds"]
            assert record["peak_memory_bytes"] > 1e8
            assert "mfu" not in record
        work = [record["flops_per_second"] * (r["step_seconds"] + r["data_wait_seconds"])
                for record, r in ((alone, alone), (together, together))]  # fmt: skip
        assert work[0] == pytest.approx(2 * work[1]), "a rank of two does half of the step"


RECOMPUTED = ("kernels.activation_checkpoint_fraction=0.7", "kernels.deterministic=true")
COMPILED = ("kernels.compile=true", "kernels.activation_checkpoint_fraction=0.4", "kernels.deterministic=true")


@pytest.mark.parametrize(
    ("stage", "ranks", "kernels"),
    [
        (1, 1, ()),
        (1, 2, ()),
        (2, 2, ()),
        (3, 2, RECOMPUTED),
        (2, 1, COMPILED),
        pytest.param(3, 2, (), marks=pytest.mark.slow),
        pytest.param(1, 2, COMPILED, marks=pytest.mark.slow),
    ],
)
def test_zero_agrees_with_plain_torch(
    recipe_file: Path, tmp_path: Path, stage: int, ranks: int, kernels: tuple[str, ...]
) -> None:
    if kernels == COMPILED and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    expected, model = train_naively(load_recipe(recipe_file))
    assert len(expected) == 16
    assert expected[-1] < expected[0]
    run = tmp_path / "zero"
    train(recipe_file, *settings(deepspeed_file(tmp_path, stage), f"run_directory={run}", *kernels), ranks=ranks)
    # fp32: only the order of the sums differs
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    weights = dict(model.named_parameters())
    for name, weight in load_weights(require_checkpoint(run)).items():
        expected_weight = weights[name if name != "decoder.weight" else "model.embeddings.tok_embeddings.weight"]
        torch.testing.assert_close(weight, expected_weight.detach(), rtol=1e-4, atol=1e-5)


# (ZeRO stage, bf16, rows of a micro-batch; 4: no accumulation). Each stage, and each precision with each accumulation;
# the slow tier has the rest.
RESUMED = [(1, True, 2), (1, False, 4), (2, True, 4), (3, False, 2)]
ALL_RESUMED = list(itertools.product((1, 2, 3), (True, False), (2, 4)))


@pytest.mark.parametrize(
    ("stage", "bf16", "micro_rows"),
    [*RESUMED, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL_RESUMED if case not in RESUMED)],
)
def test_killed_run_resumes_bitwise(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path], stage: int, bf16: bool, micro_rows: int
) -> None:
    setting = settings(deepspeed_file(tmp_path, stage, bf16), f"train.micro_batch_rows={micro_rows}")
    # the save of step 8 began when that of step 4 was published: there is a checkpoint by now, one of the two
    process = start(recipe_file, *setting, ranks=2, fault="pause:10:1")
    wait_for_output(process, "paused in step 10")
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    output = train(recipe_file, *setting, ranks=2)
    assert f"resuming at step {int(latest.removeprefix('step_'))}" in output
    assert trace(tmp_path / "run") == trace(reference(recipe_file, *setting, ranks=2))


def test_signal_saves_and_the_same_command_continues(recipe_file: Path, tmp_path: Path) -> None:
    long = ("--set", "train.total_tokens=200000", "--set", "train.checkpoint_every_steps=100000")
    process = start(recipe_file, *long)
    wait_for_output(process, "step 1/")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    done = len(read_metrics(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text(encoding="utf-8").strip() == f"step_{done:09d}"
    assert f"resuming at step {done}" in train(recipe_file, *long, "--max-steps", "2")
    assert len(read_metrics(tmp_path / "run")) == done + 2


def test_held_out_score_is_that_of_eval_at_any_number_of_ranks(recipe_file: Path, tmp_path: Path) -> None:
    shards = load_recipe(recipe_file).data.sources[0].path
    # 5 rows in batches of 2 on 2 ranks: one batch is half full, one rank has an empty one
    evaluation = (f"evaluation.shards={shards}", "evaluation.every_steps=6", "evaluation.max_rows=5")
    evaluation += (f"evaluation.other_shards=['{shards}', '{shards}']",)
    found = []
    for stage, ranks in ((1, 1), (3, 2)):
        run = tmp_path / f"ranks{ranks}"
        train(recipe_file, *settings(*evaluation, deepspeed_file(tmp_path, stage), f"run_directory={run}"), ranks=ranks)
        scored = [record for record in read_metrics(run) if "heldout_loss" in record]
        assert all(record["heldout_other_losses"] == [record["heldout_loss"]] * 2 for record in scored)
        assert [record["step"] for record in scored] == [5, 11, 15]
        found.append([(r["heldout_loss"], r["heldout_accuracy"], r["heldout_masked_tokens"]) for r in scored])
    for alone, together in zip(*found, strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    plain = tmp_path / "plain"
    train(recipe_file, "--set", f"run_directory={plain}")
    assert losses(plain) == losses(tmp_path / "ranks1")  # looking changes nothing
    output = tmp_path / "eval.json"
    assert main(["eval", str(plain), "--data", shards, "--max-rows", "5", "--output", str(output)]) == 0
    score = json.loads(output.read_text(encoding="utf-8"))
    assert found[0][-1] == pytest.approx(
        (score["heldout_loss"], score["masked_accuracy"], score["masked_tokens"]), rel=1e-5
    )


def ledger(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run / "ledger").iterdir()))


def test_ledger_and_skipped_steps(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    train(recipe_file, "--set", f"run_directory={unbroken}")
    train(recipe_file, "--set", f"run_directory={broken}", "--max-steps", "6")
    (broken / "ledger/000000000.bin").write_bytes(ledger(broken) + b"cut short by a kill")
    train(recipe_file, "--set", f"run_directory={broken}")
    assert ledger(broken) == ledger(unbroken)

    skipping = tmp_path / "skipping"
    train(recipe_file, "--set", f"run_directory={skipping}", "--max-steps", "8")
    output = train(recipe_file, "--set", f"run_directory={skipping}", "--skip-steps", "5:9", code=2)
    assert "must name steps still to do, 8 or later" in output
    for steps in (1, 3, 1):  # asked again before it, and when it is past: left out once
        train(recipe_file, "--set", f"run_directory={skipping}", "--skip-steps", "10:13", "--max-steps", str(steps))
    train(recipe_file, "--set", f"run_directory={skipping}")  # the batches stay left out
    data_rows = [record["first_row"] for record in read_metrics(skipping)]
    assert data_rows == [8 * batch for batch in (*range(10), *range(13, 19))]
    for step in (3, 12):
        assert read_record(skipping, step).first_row == data_rows[step]
    assert losses(skipping)[:10] == losses(unbroken)[:10]
    assert losses(skipping)[10:] != losses(unbroken)[10:]

    assert main(["ledger", str(skipping), "--step", "12", "--show"]) == 0
    shown = capsys.readouterr().out
    segments = len(read_record(skipping, 12).segments.documents)
    assert f"step 12, rows from 120 of the data: {segments} segments" in shown
    assert shown.count(" document ") == segments
    assert "⟦" in shown
    assert main(["ledger", str(skipping), "--step", "99"]) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_megatron_set_trains(recipe_file: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for number in range(400):
        ids = tokenizer.encode("今天天气很好，我们一起去公园散步。" * (number % 5 + 1))
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(re.sub(r"(sources\]\]\npath = ).*", rf'\1"{tmp_path}/theirs"', text), encoding="utf-8")
    output = train(recipe_file, "--max-steps", "2", *settings("data.num_workers=1"), ranks=2)
    assert "Megatron shard without word units: masking single tokens" in output
    for record in read_metrics(tmp_path / "run"):
        assert record["unit_lengths"][0] > 0
        assert sum(record["unit_lengths"][1:]) == 0
        assert record["straddle_rate"] is None
    tokens = tmp_path / "theirs.bin"
    raw = bytearray(tokens.read_bytes())
    raw[100:102], raw[200:202] = raw[200:202], raw[100:102]
    assert raw != tokens.read_bytes()
    tokens.write_bytes(raw)
    assert "made with other shards" in train(recipe_file, "--max-steps", "1", code=2)
    raw[-2:] = b"\xff\xff"
    tokens.write_bytes(raw)
    said = train(recipe_file, "--max-steps", "1", code=2)
    assert "theirs.bin: holds id 65535" in said
    assert "Traceback" not in said


def test_a_time_limit_saves_and_stops(recipe_file: Path, tmp_path: Path) -> None:
    long = settings("train.total_tokens=2000000", "train.checkpoint_every_steps=100000")
    output = train(recipe_file, *long, "--stop-after-seconds", "12", code=EXIT_STOPPED)
    assert "the same command continues" in output
    done = len(read_metrics(tmp_path / "run"))
    if done:  # a slow machine may spend the time on starting
        assert f"resuming at step {done}" in train(recipe_file, *long, "--max-steps", "1")
