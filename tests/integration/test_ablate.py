"""A sweep as a user runs it: text to page, interrupted and continued, an arm that fails, a list that changed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forking
from tests.conftest import SENTENCES

BASE = """
run_directory = "unused"
[model]
num_layers = 2
hidden_size = 32
num_heads = 2
intermediate_size = 48
vocab_size = 320
local_window = 16
max_length = 128
[data]
tokenizer = "runs/tokenizer"
context_tokens = 64
shuffle_block_rows = 32
[[data.sources]]
path = "runs/shards"
[schedule]
lr_max = 1e-2
lr_min = 1e-3
[train]
total_tokens = 16_384
rows_per_step = 8
micro_batch_rows = 8
checkpoint_every_steps = 4
deepspeed = "ds.json"
[evaluation]
shards = "runs/heldout"
every_steps = 8
max_rows = 8
"""
LIST = """
base = "base.toml"
question = "两段还是一段？"
seeds = 1
contexts = [64, 128]
prepare = [
    "data_tools sample --from {text} --output runs/text",
    "data_tools train-tokenizer --vocab-size 320 --input runs/text/train.jsonl --output runs/tokenizer",
    "data_tools preprocess --tokenizer runs/tokenizer --input runs/text/train.jsonl --output runs/shards",
    "data_tools preprocess --tokenizer runs/tokenizer --input runs/text/heldout.jsonl --output runs/heldout",
]
[[arms]]
name = "one"
what = "一段"
[[arms]]
name = "two"
what = "两段"
set.train = { total_tokens = "75 %" }
then.train = { total_tokens = "25 %", rows_per_step = 4 }
then.data = { context_tokens = 128 }
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with text, base recipe and list."""
    folder = tmp_path_factory.mktemp("desk")
    lines = [
        json.dumps({"text": "".join(SENTENCES[(i * k) % 5] for k in range(1, 3 + i % 7)) + str(i)}, ensure_ascii=False)
        for i in range(600)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "base.toml").write_text(BASE, encoding="utf-8")
    (folder / "list.toml").write_text(LIST, encoding="utf-8")
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    return folder


def start(desk: Path, output: str, *options: str, list_file: str = "list.toml") -> subprocess.Popen:
    command = [sys.executable, "-m", "cmbert", "ablate", list_file, "--text", "text.jsonl", "--output", output]
    command += options
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return forking.Popen(
        command, cwd=desk, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ablate(desk: Path, output: str, *options: str, code: int = 0, list_file: str = "list.toml") -> str:
    process = start(desk, output, *options, list_file=list_file)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def training(folder: Path) -> list[int]:
    """Return the processes that train or score under `folder`: those whose output is a log there."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            output = process / "fd" / "1"
            if process.name.isdigit() and output.readlink().is_relative_to(folder):
                found.append(int(process.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):  # it has ended, or is another's
            continue
    return sorted(found)


def wait_for_steps(process: subprocess.Popen, arm: Path) -> None:
    """Wait until an arm has done five steps."""
    metrics = arm / "seed0" / "stage1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def losses(desk: Path, output: str) -> dict:
    arms = json.loads((desk / output / "results.json").read_text(encoding="utf-8"))["arms"]
    return {arm["arm"]: ([score["heldout_loss"]["values"] for score in arm["scores"]], arm["curve"]) for arm in arms}


@pytest.fixture(scope="module")
def whole(desk: Path) -> str:
    """What an unbroken sweep into whole/ says."""
    return ablate(desk, "whole")


def test_a_sweep_goes_on_after_an_interrupt_bit_for_bit(desk: Path, whole: str) -> None:
    assert "2 trainings of 2 arms, 2 to do" in whole
    assert "rows of 128" in whole
    assert "one seed: no interval" in whole
    unbroken = losses(desk, "whole")
    assert {name: len(scores) for name, (scores, _) in unbroken.items()} == {"one": 2, "two": 2}
    assert unbroken["two"][1]["tokens"][-1] == 16_384

    process = start(desk, "broken")
    wait_for_steps(process, desk / "broken" / "two")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert not training(desk / "broken")  # nothing trains on behind the user's back
    ablate(desk, "broken")
    assert losses(desk, "broken") == unbroken

    scored = (desk / "whole" / "one" / "seed0" / "score.json").stat().st_mtime_ns
    assert "2 trainings of 2 arms, 0 to do" in ablate(desk, "whole")
    assert (desk / "whole" / "one" / "seed0" / "score.json").stat().st_mtime_ns == scored

    (desk / "changed.toml").write_text(LIST.replace('"75 %"', '"50 %"').replace('"25 %"', '"50 %"'), encoding="utf-8")
    said = ablate(desk, "whole", code=2, list_file="changed.toml")
    assert "train.total_tokens is another than the list's; remove whole/two/seed0" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_what_a_killed_sweep_left_in_training_is_not_trained_twice(desk: Path, whole: str) -> None:
    process = start(desk, "killed")
    wait_for_steps(process, desk / "killed" / "two")
    left = training(desk / "killed")
    assert left
    for pid in left:
        os.kill(pid, signal.SIGSTOP)  # or they may be done before the next call looks
    process.kill()
    process.communicate()
    said = ablate(desk, "killed", code=2)
    assert "still in training" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert training(desk / "killed") == left
    for pid in left:
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
    ablate(desk, "killed")
    assert losses(desk, "killed") == losses(desk, "whole")


@pytest.mark.slow
def test_an_arm_that_fails_does_not_stop_the_others(desk: Path) -> None:
    text = LIST.replace('set.train = { total_tokens = "75 %" }', 'set.data = { sources = [{ path = "nowhere" }] }')
    (desk / "failing.toml").write_text(text[: text.index("then.train")], encoding="utf-8")
    said = ablate(desk, "failing", code=2, list_file="failing.toml")
    assert "1 of 2 trainings failed: failing/two/seed0; see the end of their log.txt" in said
    assert "Traceback" not in said
    assert "nowhere" in (desk / "failing" / "two" / "seed0" / "log.txt").read_text(encoding="utf-8")
    assert list(losses(desk, "failing")) == ["one"]
    assert (desk / "failing" / "index.html").is_file()


@pytest.mark.slow
def test_other_contexts_are_scored_and_nothing_is_trained_again(desk: Path) -> None:
    """First both arms, then one of them alone: the other has its new score already."""
    ablate(desk, "asked")
    metrics = {path: path.stat().st_mtime_ns for path in (desk / "asked").rglob("metrics.jsonl")}
    (desk / "more.toml").write_text(LIST.replace("[64, 128]", "[32, 64, 128]"), encoding="utf-8")
    assert "2 trainings of 2 arms, 2 to do" in ablate(desk, "asked", list_file="more.toml")
    (desk / "asked" / "two" / "seed0" / "score.json").unlink()
    assert "2 trainings of 2 arms, 1 to do" in ablate(desk, "asked", list_file="more.toml")
    assert {name: len(scores) for name, (scores, _) in losses(desk, "asked").items()} == {"one": 3, "two": 3}
    assert "2 trainings of 2 arms, 0 to do" in ablate(desk, "asked")  # fewer than were asked
    assert {path: path.stat().st_mtime_ns for path in metrics} == metrics


@pytest.mark.slow
def test_rates_are_tried_and_the_best_is_fine_tuned(desk: Path) -> None:
    arms = LIST.replace('what = "一段"', 'what = "一段"\nlearning_rates = [1e-6, 1e-2]')
    arms = arms.replace(
        'set.train = { total_tokens = "75 %" }', 'tokens = "50 %"\nset.train = { total_tokens = "25 %" }'
    )
    arms = arms.replace('then.train = { total_tokens = "25 %"', 'then.train = { total_tokens = "75 %"')
    (desk / "rated.toml").write_text('tasks = ["long.toml"]\n' + arms, encoding="utf-8")
    task = 'name = "long"\ntext = ["text"]\nlabels = ["0", "1"]\nmax_length = 64\nepochs = 1\ntest = []\n'
    (desk / "long.toml").write_text(task, encoding="utf-8")
    folder = desk / "data" / "long"
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        lines = [json.dumps({"text": SENTENCES[n % 5], "label": str(n % 2)}, ensure_ascii=False) for n in range(40)]
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = ablate(desk, "rated", list_file="rated.toml")
    assert "3 trainings choose the learning rates, 3 to do" in said
    assert "best learning rates: one 0.01" in said
    assert "not fine-tuned on long.toml: --tasks-data DIR does it" in said
    assert "Fine-tuned" not in said
    metrics = {path: path.stat().st_mtime_ns for path in (desk / "rated").rglob("metrics.jsonl")}
    assert len(metrics) == 4  # two rates, and two stages of the other arm
    for to_do in (2, 0):
        said = ablate(desk, "rated", "--tasks-data", "data", list_file="rated.toml")
        assert f"2 trainings of 2 arms, {to_do} to do" in said
        assert "best, at the edge: try larger" in said
    assert {path: path.stat().st_mtime_ns for path in metrics} == metrics
    arms = json.loads((desk / "rated" / "results.json").read_text(encoding="utf-8"))["arms"]
    assert [arm["tokens"] for arm in arms] == [16_384, 8_192]
    assert all(0 <= arm["tasks"]["long"]["mean"] <= 100 for arm in arms)
    assert not (desk / "rated" / "one" / "lr-1e-06" / "seed0" / "tasks").exists()
