"""The programs of examples/, run as a reader runs them, on a tiny model trained and exported here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.cli import main
from tests import forking

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def exported(trained: Path) -> Path:
    """The run as `cmbert export` leaves it, made once."""
    folder = trained.parent / "export"
    if not folder.exists():
        assert main(["export", str(trained), "--output", str(folder)]) == 0
    return folder


def run(folder: Path, name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
    return forking.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})


def done(folder: Path, name: str, *words: object) -> str:
    """Run an example to its good end; return what it printed."""
    process = run(folder, name, *words)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_every_example_is_tested() -> None:
    assert EXAMPLES == ["fill_mask.py", "predict.py", "sentence_vectors.py"]  # predict.py: test_predict.py
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in page for name in EXAMPLES)


def test_fill_mask(exported: Path, tmp_path: Path) -> None:
    said = done(tmp_path, "fill_mask.py", exported, "filled.json")
    filled = json.loads((tmp_path / "filled.json").read_text(encoding="utf-8"))
    assert len(filled) == 5
    for entry in filled:
        assert entry["text"] in said
        assert "[MASK]" not in entry["filled"]
        scores = [guess["score"] for guess in entry["predictions"]]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1


def test_sentence_vectors(exported: Path, tmp_path: Path) -> None:
    lines = done(tmp_path, "sentence_vectors.py", exported).splitlines()
    assert len(lines) == 6
    cosines = [float(line.split()[0]) for line in lines]
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert len(set(cosines)) > 1


MISTAKES = {
    "no export": (("fill_mask.py", "nowhere"), "nowhere: no exported model"),
    "no model for vectors": (("sentence_vectors.py",), "no folder given: no exported model"),
    "no weights": (("fill_mask.py", "bare"), "bare: has no weights (model.safetensors); export it again"),
    "no weights for vectors": (("sentence_vectors.py", "bare"), "bare: has no weights (model.safetensors)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}", encoding="utf-8")
    words, message = MISTAKES[mistake]
    process = run(tmp_path, *(str(trained) if word == "RUN" else word for word in words))
    assert process.returncode == 2, process.stdout + process.stderr
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
