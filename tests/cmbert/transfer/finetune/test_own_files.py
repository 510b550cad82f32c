"""`cmbert finetune --train FILE`: a task of no more than its files. A mistake is one line, and nothing is written."""

import csv
import json
from pathlib import Path

import pytest

from cmbert.cli import main
from cmbert.errors import ConfigError, InputError
from cmbert.transfer.tasks.chosen import Chosen
from cmbert.transfer.tasks.task import Task
from tests.cmbert.transfer.finetune.conftest import reviews, write_lines

COLUMNS = ["--text", "评论", "--label", "类别"]


def write_csv(path: Path, count: int, seed: int) -> Path:
    with open(path, "w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets save it
        rows = [(record["sentence"], {"1": "好评", "0": "差评"}[record["label"]]) for record in reviews(count, seed)]
        csv.writer(file).writerows([("评论", "类别"), *rows])
    return path


def command(folder: Path, model: Path, *words: object) -> list[str]:
    return ["finetune", "--model", str(model), "--output", str(folder / "out"), *map(str, words)]


def test_a_csv_file_alone(bert_folder, tmp_path, capsys, monkeypatch):
    """A tenth is held back, the same in every call, from wherever the call is made."""
    write_csv(tmp_path / "门店.csv", 80, 1)
    words = [*COLUMNS, "--name", "mine", "--seeds", "1", "--epochs", "10", "--learning-rates", "5e-3"]
    words += ["--batch-sizes", "8"]
    assert main(command(tmp_path, bert_folder, "--train", tmp_path / "门店.csv", *words)) == 0
    result = json.loads((tmp_path / "out/门店/mine/result.json").read_text(encoding="utf-8"))
    assert (result["train_examples"], result["splits"]["dev"]["examples"]) == (72, 8)
    assert result["labels"] == ["好评", "差评"]
    assert result["splits"]["dev"]["accuracy"]["mean"] > 80
    assert "门店 dev, accuracy" in capsys.readouterr().out
    monkeypatch.setattr("cmbert.transfer.finetune.protocol.run_trial", None)  # nothing is trained again
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, bert_folder, "--train", "门店.csv", *words)) == 0


def test_dev_and_test_files_of_other_kinds(tmp_path):
    write_csv(tmp_path / "train.csv", 4, 1)
    write_lines(tmp_path / "more" / "dev.jsonl", [{"评论": "很好", "类别": "好评"}])
    (tmp_path / "test.TSV").write_text("评论\n很好\n", encoding="utf-8")
    files = {"train": tmp_path / "train.csv", "dev": tmp_path / "more" / "dev.jsonl", "test": tmp_path / "test.TSV"}
    ((task, folder),) = Chosen(**files, text=["评论"], label="类别", max_length=64).tasks()
    assert folder == tmp_path
    assert task == Task(
        name="train",
        text=("评论",),
        label="类别",
        train=("train.csv",),
        dev=("more/dev.jsonl",),
        test=("test.TSV",),
        max_length=64,
    )


MISTAKES = {
    "two ways": (["--train", "good.csv", "--task", "tnews"], "--train and --task exclude each other"),
    "a column": (["--task", "tnews", "--data", ".", "--label", "a"], "--label and --task exclude each other"),
    "nothing": ([], "--task: missing; name it and --data, or --train FILE --text COLUMN --label COLUMN"),
    "no data": (["--task", "tnews"], "--data: missing; it goes with --task"),
    "no task": (["--data", "."], "--task: missing; it goes with --data"),
    "no columns": (["--train", "good.csv"], "--text: missing; it goes with --train"),
    "no label": (["--train", "good.csv", "--text", "评论"], "--label: missing; it goes with --train"),
    "no training": (["--dev", "good.csv", *COLUMNS], "--train: missing; it goes with --dev"),
    "no file": (["--train", "nowhere.csv", *COLUMNS], "--train nowhere.csv: no such file"),
    "no test file": (["--train", "good.csv", "--test", "no.csv", *COLUMNS], "--test no.csv: no such file"),
    "another kind": (["--train", "good.xlsx", *COLUMNS], "good.xlsx: must be .csv, .tsv, .json, .jsonl; save a"),
    "twice": (["--train", "good.csv", "--dev", "./good.csv", *COLUMNS], "is the training file; leave it out"),
    "no column": (["--train", "good.csv", "--text", "评", "--label", "类别"], "good.csv:1: no column '评'; did"),
    "no label column": (["--train", "good.csv", "--text", "评论", "--label", "标签"], "good.csv:1: no column '标签'"),
    "three texts": (["--train", "good.csv", "--text", "a,b,c", "--label", "类别"], "text: must name one key or two"),
    "text as label": (["--train", "good.csv", "--text", "评论", "--label", "评论"], "label: must be another key than"),
    "short": (["--train", "good.csv", *COLUMNS, "--max-length", "8"], "max_length: must be 16 tokens or more"),
    "few rows": (["--train", "few.csv", *COLUMNS], "few.csv: 4 examples, of which a tenth cannot be held back"),
    "empty text": (["--train", "bad.csv", *COLUMNS], "bad.csv:3: 评论 is empty"),
    "no number": (["--train", "good.csv", *COLUMNS, "--problem-type", "regression"], "good.csv:2: 类别 must be a"),
    "new label": (["--train", "good.csv", "--dev", "new.csv", *COLUMNS], "new.csv:2: 类别 '中评' is not one of good"),
    "another encoding": (["--train", "gbk.csv", *COLUMNS], "gbk.csv:1: not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path, bert_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "good.csv", 20, 1)
    write_csv(tmp_path / "few.csv", 4, 2)
    (tmp_path / "bad.csv").write_text("评论,类别\n很好,好评\n ,差评\n", encoding="utf-8")
    (tmp_path / "new.csv").write_text("评论,类别\n一般,中评\n", encoding="utf-8")
    (tmp_path / "gbk.csv").write_bytes("评论,类别\n很好,好评\n".encode("gbk"))
    (tmp_path / "good.xlsx").write_bytes(b"PK")
    words, message = MISTAKES[mistake]
    assert main(command(tmp_path, bert_folder, *words)) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert message in last
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_names_that_make_no_task(tmp_path):
    (tmp_path / "a\u2028b.csv").write_text("评论,类别\n好,好评\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="name: must be a folder's name"):
        Chosen(train=tmp_path / "a\u2028b.csv", text=["评论"], label="类别").tasks()
    with pytest.raises(InputError, match=r"must be \.csv"):
        Chosen(train=tmp_path, text=["评论"], label="类别").tasks()
