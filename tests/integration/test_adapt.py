"""`make adapt` on a tiny model: from text to a table of before and after, stopped, done again, refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cmbert.config.load import load_recipe
from cmbert.export.lineage import read_lineage
from cmbert.runs.metrics import read_metrics
from tests import forking
from tests.cmbert.export.families import FAMILIES

ROOT = Path(__file__).parents[2]
TEXTS = (  # long and different enough that cleaning keeps them
    "清晨的公园里有许多老人在打太极拳，湖边的柳树刚刚长出嫩绿的新芽，孩子们追着风筝跑来跑去。",
    "这座小城因为一条古老的运河而闻名，每年春天都有画家带着学生来这里写生，一住就是半个月。",
    "图书馆三楼新开了一间阅览室，里面收藏着近百年来的地方报纸，读者可以免费查阅和复印。",
    "昨天的会议讨论了明年的预算，大家同意把更多的钱用在设备维修上，而不是购买新的办公家具。",
    "医生建议他每天散步四十分钟，少吃盐和油炸食品，三个月以后再回医院检查一次血压。",
    "列车穿过长长的隧道以后，眼前忽然出现了一片开满油菜花的山谷，车厢里响起一阵惊叹。",
    "做这道菜要先把豆腐切成小块，用盐水泡十分钟，再放进热锅里慢慢煎到两面金黄。",
    "足球队在最后五分钟连进两球，观众席上的欢呼声几乎盖过了裁判的哨声，教练激动得流下眼泪。",
)


@pytest.fixture
def trained(recipe_file: Path, reference: Callable[..., Path]) -> Path:
    """A finished run; only to be read."""
    return reference(recipe_file)


def write_texts(folder: Path, *, clauses: int) -> Path:
    """Write documents that cleaning keeps and that are no near copies of each other."""
    folder.mkdir()
    parts = [part for text in TEXTS for part in re.split("[，。]", text) if part]
    lines = ("，".join(parts[(i * step + step) % len(parts)] for step in range(1, clauses)) + "。" for i in range(60))
    (folder / "mine.txt").write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
    return folder


def adapt(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "adapt" / "adapt.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(folder / "modules")}
    return forking.run(command, cwd=folder, env=environment, timeout=400)


def losses(path: Path) -> Iterator[float]:
    return (score["heldout_loss"] for score in json.loads(path.read_text(encoding="utf-8"))["scores"])


@pytest.mark.slow
def test_a_run_on_text_of_ones_own(trained: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "mine", clauses=6)
    write_texts(tmp_path / "other", clauses=9)
    words = ("--model", trained, "--text", "mine", "--general", "other", "--output", "out", "--tokens", "20000")
    words += ("--learning-rate", "0.01", "--processes", "1", "--to-the-end")
    done = adapt(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    before, recipe = load_recipe(trained / "resolved.toml"), load_recipe(tmp_path / "out" / "run" / "resolved.toml")
    assert (recipe.model, recipe.optimizer, recipe.data.tokenizer) == (
        before.model, before.optimizer, before.data.tokenizer,
    )  # fmt: skip
    assert [source.weight for source in recipe.data.sources] == [0.8, 0.2]
    records = read_metrics(tmp_path / "out" / "run")
    assert records[0]["loss"] < read_metrics(trained)[0]["loss"]  # not fresh weights
    assert len([record for record in records if record.get("heldout_other_losses")]) >= 5
    assert next(losses(tmp_path / "out" / "after.json")) < next(losses(tmp_path / "out" / "before.json"))
    assert [stage.name for stage in read_lineage(tmp_path / "out" / "run").stages] == [trained.name, "run"]
    table = (tmp_path / "out" / "adapted.md").read_text(encoding="utf-8")
    assert re.search(r"\| domain \| [\d.]+ \| [\d.]+ \| -[\d.]+ \|\n\| general \|", table)
    assert (tmp_path / "out" / "export" / "model.safetensors").is_file()
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "run" / "checkpoints").rglob("*")}
    again = adapt(tmp_path, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert marks == {path: path.stat().st_mtime_ns for path in marks}  # nothing was trained again


@pytest.mark.slow
def test_anothers_model_is_imported_first(tmp_path: Path) -> None:
    write_texts(tmp_path / "mine", clauses=6)
    FAMILIES["Chinese ModernBERT"](tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    done = adapt(
        tmp_path, "--model", "theirs", "--text", "mine", "--output", "out", "--processes", "1", "--tokens", "4000"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recipe = load_recipe(tmp_path / "out" / "run" / "resolved.toml")
    assert recipe.model.vocab_size == 384  # 339 ids
    assert recipe.train.init_from == recipe.data.tokenizer == "out/start"
    card = (tmp_path / "out" / "export" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: zh\nlicense: mit\n")
    assert "Started from `theirs`, whose training is not told here; its licence (mit)" in card
    weights = load_file(tmp_path / "out" / "export" / "model.safetensors")
    assert not weights["model.embeddings.tok_embeddings.weight"][339:].any()  # blank rows have learnt nothing


@pytest.mark.slow
def test_it_stops_when_the_loss_falls_no_more(trained: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "mine", clauses=6)
    words = ("--model", trained, "--text", "mine", "--output", "out", "--processes", "1")
    words += ("--tokens", "2000000", "--learning-rate", "1e-9")  # nothing is learnt
    for _ in range(2):
        done = adapt(tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "has not fallen for 3 evaluations: enough" in done.stdout
    steps = len(read_metrics(tmp_path / "out" / "run"))
    assert 300 <= steps < 900  # of 976, scored every 97th; the second call trained no further
    assert (tmp_path / "out" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_hours_become_tokens_by_what_is_measured_here(trained: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "mine", clauses=6)
    words = ("--model", trained, "--text", "mine", "--output", "out", "--processes", "1", "--hours")
    done = adapt(tmp_path, *words, "1e-6")
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"^--hours 1e-06: start and held-out scores alone take [\d.]+ here; give more$", done.stderr, re.M)
    assert not (tmp_path / "out" / "recipe.toml").exists()


MISTAKES = {
    "no model": (("--model", "nowhere", "--text", "mine"), "nowhere: neither a run of cmbert train nor a model folder"),
    "no text": (("--model", "RUN", "--text", "nowhere"), "nowhere"),
    "two budgets": (("--model", "RUN", "--text", "mine", "--hours", "1", "--tokens", "9"), "--tokens or --hours"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line(mistake: str, trained: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "mine", clauses=6)
    words, message = MISTAKES[mistake]
    done = adapt(tmp_path, *(str(trained) if word == "RUN" else word for word in words), "--output", "out")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
