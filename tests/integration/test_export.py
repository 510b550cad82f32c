"""Export from real runs: every ZeRO stage, both training stages, mid-run checkpoints; mistakes leave nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.weights import load_weights
from cmbert.cli import main
from cmbert.files.folders import asides
from cmbert.model.folder import read_weights
from tests import forking
from tests.cards import run_snippets
from tests.integration.launching import deepspeed_file, settings, train


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep transformers from copying model code into the home directory."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has only the exported folder."""
    return os.environ | {"HF_MODULES_CACHE": str(tmp_path / "outside"), "HF_HUB_OFFLINE": "1"}


def export(model: Path, output: Path, format: str = "hf") -> int:
    return main(["export", str(model), "--output", str(output), "--format", format])


def second_stage(recipe_file: Path, init_from: Path, run: Path) -> Path:
    path = recipe_file.with_name(f"{run.name}.toml")
    path.write_text(
        f"""
extends = "{recipe_file}"
run_directory = "{run}"
[data]
context_tokens = 256
[mask]
peak_rate = 0.15
warmup_tokens = 0
[schedule]
warmup_tokens = 0
[train]
rows_per_step = 4
init_from = "{init_from}"
""",
        encoding="utf-8",
    )
    return path


def test_every_zero_stage_training_stage_and_step(recipe_file: Path, tmp_path: Path, outside: dict[str, str]) -> None:
    run, run2 = tmp_path / "run", tmp_path / "second"
    train(recipe_file, "--set", deepspeed_file(tmp_path, 3), ranks=2)
    scored = settings(f"evaluation.shards={tmp_path}/heldout", "evaluation.every_steps=4")
    shutil.copytree(re.search('path = "(.*)"', recipe_file.read_text(encoding="utf-8"))[1], tmp_path / "heldout")
    train(second_stage(recipe_file, run, run2), "--set", deepspeed_file(tmp_path, 2, bf16=True), *scored, ranks=2)
    train(recipe_file, "--set", f"run_directory={tmp_path}/plain", "--max-steps", "2")
    mid, *_, last = sorted(run.glob("checkpoints/step_*"))
    step, total = (json.loads((path / "state.json").read_text(encoding="utf-8"))["step"] for path in (mid, last))
    assert step < total
    cards = {}
    for name, model in {"mid": mid, "zero3": run, "zero2": run2, "zero1": tmp_path / "plain"}.items():
        assert export(model, tmp_path / "exports" / name) == 0
        seen = read_weights(tmp_path / "exports" / name)
        expected = load_weights(require_checkpoint(model))
        assert all(torch.equal(seen[key], expected[key].float()) for key in seen), name
        cards[name] = (tmp_path / "exports" / name / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == sorted(cards)
    assert len({(tmp_path / "exports" / name / "model.safetensors").read_bytes() for name in cards}) == 4
    assert f"| steps | {step} of {total} |" in cards["mid"]
    assert f"A checkpoint in mid-training: step {step} of {total}" in cards["mid"]
    assert "mid-training" not in cards["zero3"]
    assert "| ranks | 2, ZeRO 3 |" in cards["zero3"]
    assert "| ranks | 1, ZeRO 1 |" in cards["zero1"]
    assert "Not evaluated" in cards["zero3"]
    assert "scored no held-out text: its recipe names no evaluation.shards" in cards["zero3"]
    assert re.search(r"A guess without context would lose \d\.\d{4} nats", cards["zero3"])
    card = cards["zero2"]
    assert card.index("## Stage 1: run") < card.index("## Stage 2: second")
    assert "| mask rate | 15 % -> 30 % -> 15 % of the tokens, whole words, peak at 1,024 tokens |" in card
    assert "| ranks | 2, ZeRO 2 |" in card
    assert "| precision | bf16 with fp32 master weights |" in card
    figure = r"-?\d\.\d{4} \|"
    assert re.search(rf"\| second \| heldout \| [\d,]+ \| {figure} {figure} {figure} {figure} [\d,]+ \| 256 \|", card)
    assert "Not evaluated" not in card
    assert str(tmp_path) not in "".join(cards.values())
    guesses, similarity = run_snippets(card, tmp_path / "exports" / "zero2", outside)
    assert len(guesses.splitlines()) == 5
    assert "1.0000" in similarity


def test_the_card_says_what_is_lost_and_onnx_needs_two_packages(
    recipe_file: Path, tmp_path: Path, outside: dict[str, str]
) -> None:
    pytest.importorskip("onnxruntime")
    train(recipe_file, "--max-steps", "2")
    run2 = tmp_path / "second"
    train(second_stage(recipe_file, tmp_path / "run", run2), "--max-steps", "2", "--allow-unfinished")
    (tmp_path / "run").rename(tmp_path / "moved")
    (run2 / "metrics.jsonl").unlink()
    (run2 / "environment.json").unlink()
    assert export(run2, tmp_path / "onnx", "onnx") == 0
    card = (tmp_path / "onnx" / "README.md").read_text(encoding="utf-8")
    assert "Started from `run`, which is no longer there" in card
    assert "## Stage 1: second" in card
    assert "None" not in card
    assert "git commit" not in card
    assert re.search(r"\| onnx, padded \| \d\.\de-0[4-9] \|", card)
    (guesses,) = run_snippets(card, tmp_path / "onnx", outside, "torch", "transformers")
    assert len(guesses.splitlines()) == 5
    assert main(["eval", str(tmp_path / "onnx"), "--data", str(tmp_path)]) == 2


def spoil_tokenizer(tokenizer: Path) -> None:
    text = (tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    (tokenizer / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def spoil_vocabulary(tokenizer: Path) -> None:
    backend = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    token, _ = max(backend["model"]["vocab"].items(), key=lambda item: item[1])
    del backend["model"]["vocab"][token]
    backend["model"]["merges"] = [pair for pair in backend["model"]["merges"] if "".join(pair) != token]
    (tokenizer / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")


def test_bad_input_is_one_line_and_leaves_nothing(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    found = re.search('tokenizer = "(.*)"', text)[1]
    good, tokenizer = Path(found), tmp_path / "own_tokenizer"
    shutil.copytree(good, tokenizer)
    recipe_file.write_text(text.replace(found, str(tokenizer)), encoding="utf-8")
    train(recipe_file, "--max-steps", "2")
    (tmp_path / "there").mkdir()
    cases = [
        (shutil.rmtree, "own_tokenizer", "hf"),
        (lambda tokenizer: (tokenizer / "tokenizer_config.json").unlink(), "tokenizer_config.json", "hf"),
        (spoil_tokenizer, "trained with another tokenizer", "hf"),
        (spoil_vocabulary, "trained with another tokenizer", "hf"),
        (lambda tokenizer: None, "LayerNorm", "hf-modernbert"),
    ]
    for spoil, message, format in cases:
        spoil(tokenizer)
        capsys.readouterr()
        assert export(tmp_path / "run", tmp_path / "exports" / "model", format) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "exports").exists()
        shutil.rmtree(tokenizer, ignore_errors=True)
        shutil.copytree(good, tokenizer)
    with monkeypatch.context() as small:
        small.setattr("cmbert.memory.free_host_bytes", lambda: 1000)
        assert export(tmp_path / "run", tmp_path / "exports" / "model") == 2
        assert "are free on the CPU; open it on a machine with more memory" in capsys.readouterr().err
        assert not (tmp_path / "exports").exists()
    for model, message in ((tmp_path / "there", "no checkpoint"), (tmp_path / "run", "exists")):
        assert export(model, tmp_path / "there") == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "there").iterdir())


def test_ctrl_c_leaves_nothing(recipe_file: Path, tmp_path: Path, outside: dict[str, str]) -> None:
    train(recipe_file, "--max-steps", "2")
    output = tmp_path / "exports" / "model"
    output.parent.mkdir()
    command = [sys.executable, "-m", "cmbert", "export", str(tmp_path / "run"), "--output", str(output)]
    process = forking.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=outside | {"PYTHONPATH": str(Path.cwd())},
    )
    deadline = time.monotonic() + 120
    while not any((aside / "config.json").exists() for aside in asides(output)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted" in error.splitlines()[-1]
    assert not list(output.parent.iterdir())
