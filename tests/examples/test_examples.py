"""The programs of examples/, run as a reader runs them, on a tiny model trained and exported here."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.cli import main
from tests import forking

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
KINDS = (("房间干净，很好", "好评"), ("服务太差，失望", "差评"))
ROWS = [(f"{text}{number}", label) for number in range(20) for text, label in KINDS]


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep transformers from copying model code into the home directory, here and in what is started."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def trained(recipe_file: Path, reference: Callable[..., Path]) -> Path:
    """A finished run; only to be read."""
    return reference(recipe_file)


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


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets save it
        csv.writer(file).writerows([("评论", "类别"), *rows])
    return path


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert EXAMPLES == ["fill_mask.py", "finetune_csv.py", "predict.py", "sentence_vectors.py"]
    assert all(text.count(f'done(tmp_path, "{name}"') for name in EXAMPLES)
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


def test_finetune_csv(exported: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "reviews.csv", ROWS)
    words = (exported, table, "--text", "评论", "--label", "类别", "--output", "out")
    said = done(tmp_path, "finetune_csv.py", *words, "--epochs", "30", "--learning-rates", "1e-2")
    train, dev = (
        [tuple(json.loads(line).values()) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (tmp_path / "out" / "train.json", tmp_path / "out" / "dev.json")
    )
    assert sorted(train + dev) == sorted(ROWS)
    (commonest,) = Counter(label for _, label in dev).most_common(1)
    share = f"(the commonest label alone: {100 * commonest[1] / 4:.1f} %)"
    assert said.splitlines()[-1] == f"right on 100.0 % of 4 rows held back {share}"
    assert commonest[1] < 4  # both labels are held back: it has learnt to tell them


MISTAKES = {
    "no export": (("fill_mask.py", "nowhere"), "nowhere: no exported model"),
    "no model for vectors": (("sentence_vectors.py",), "no folder given: no exported model"),
    "no weights": (("fill_mask.py", "bare"), "bare: has no weights (model.safetensors); export it again"),
    "no weights for vectors": (("sentence_vectors.py", "bare"), "bare: has no weights (model.safetensors)"),
    "no table": (("finetune_csv.py", "m", "nowhere.csv", "--text", "评论", "--label", "类别", "--output", "out"),
                 "nowhere.csv: No such file"),
    "no column": (("finetune_csv.py", "m", "good.csv", "--text", "评", "--label", "类别", "--output", "out"),
                  "good.csv: no column '评'; the first line has: 评论, 类别"),
    "no label": (("finetune_csv.py", "m", "bad.csv", "--text", "评论", "--label", "类别", "--output", "out"),
                 "bad.csv: line 3: '评论' or '类别' is empty"),
    "few rows": (("finetune_csv.py", "m", "few.csv", "--text", "评论", "--label", "类别", "--output", "out"),
                 "few.csv: 4 rows"),
    "another encoding": (("finetune_csv.py", "m", "gbk.csv", "--text", "评论", "--label", "类别", "--output", "out"),
                         "gbk.csv: 'utf-8' codec can't decode"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, trained: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "good.csv", ROWS)
    write_csv(tmp_path / "bad.csv", [*ROWS[:1], ("很好", "")])
    write_csv(tmp_path / "few.csv", ROWS[:4])
    (tmp_path / "gbk.csv").write_bytes("评论,类别\n很好,好评\n".encode("gbk"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}", encoding="utf-8")
    words, message = MISTAKES[mistake]
    process = run(tmp_path, *(str(trained) if word == "RUN" else word for word in words))
    assert process.returncode == 2, process.stdout + process.stderr
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
