"""Lines through a model that `cmbert finetune --save` wrote: examples/predict.py, as a reader runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.cli import main
from tests import forking

ROOT = Path(__file__).parents[2]
KINDS = (("房间干净，很好", "好评"), ("服务太差，失望", "差评"))
OPTIONS = ("--epochs", "12", "--learning-rates", "1e-2", "--batch-sizes", "4", "--seeds", "1")


def predict(folder: Path, model: object, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "lines.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, str(ROOT / "examples" / "predict.py"), str(model)]
    with open(folder / "lines.txt", encoding="utf-8") as lines:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return forking.run(command, cwd=folder, env=environment, stdin=lines)


def tuned(trained: Path, folder: Path, *words: str) -> Path:
    """A model tuned and saved by the command."""
    command = ["finetune", "--model", str(trained), "--output", str(folder / "out"), "--save", str(folder / "saved")]
    assert main([*command, *OPTIONS, *words]) == 0
    return folder / "saved"


def test_labels(trained: Path, tmp_path: Path) -> None:
    rows = "".join(f"{text}{number},{label}\n" for number in range(20) for text, label in KINDS)
    (tmp_path / "reviews.csv").write_text(f"评论,类别\n{rows}", encoding="utf-8-sig")
    words = ("--train", str(tmp_path / "reviews.csv"), "--text", "评论", "--label", "类别")
    process = predict(tmp_path, tuned(trained, tmp_path, *words), "房间干净，很好\n服务太差，失望\n" * 20)
    assert process.returncode == 0, process.stderr
    assert "not supported" not in process.stderr  # transformers' of a class that it does not know
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert [labels[0]["label"] for labels in found] == ["好评", "差评"] * 20
    assert all({score["label"] for score in labels} == {"好评", "差评"} for labels in found)
    assert all(sum(score["score"] for score in labels) == pytest.approx(1) for labels in found)


def test_entities(trained: Path, tmp_path: Path) -> None:
    texts = [f"罚款{number}元" for number in range(10, 42)]
    records = [{"text": text, "entities": [{"start": 2, "end": len(text), "label": "金额"}]} for text in texts]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(lines, encoding="utf-8")
    (tmp_path / "money.toml").write_text('name = "money"\nreader = "entities"\n', encoding="utf-8")
    saved = tuned(trained, tmp_path, "--task", str(tmp_path / "money.toml"), "--data", str(tmp_path))
    process = predict(tmp_path, saved, texts[0] + "\n")
    assert process.returncode == 0, process.stderr
    (found,) = [json.loads(line) for line in process.stdout.splitlines()]
    trial = json.loads(next((tmp_path / "out").rglob("trials/*.json")).read_text(encoding="utf-8"))
    expected = json.loads(trial["dev_answers"][0])
    assert [[entity["start"], entity["end"], entity["entity_group"]] for entity in found] == expected
    assert expected


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("nowhere", "好\n", "nowhere: no model; cmbert finetune"),
        ("masked", "好\n", "masked: ModernBertForMaskedLM labels no texts"),
        ("bare", "好\n\n", "line 2: must be a text, or two with a tab between them"),
        ("bare", "好\t坏\t好\n", "line 1: must be a text"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, tokenizer_directory: Path, model: str, text: str, message: str) -> None:
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM, ModernBertForSequenceClassification

    made = {"masked": ModernBertForMaskedLM, "bare": ModernBertForSequenceClassification}
    if model in made:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
        made[model](ModernBertConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(tmp_path / model)
        tokenizer.save_pretrained(tmp_path / model)
    process = predict(tmp_path, model, text)
    assert process.returncode == 2, process.stdout + process.stderr
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
