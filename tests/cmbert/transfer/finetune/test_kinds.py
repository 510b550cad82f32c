"""Several labels, numbers and entities: losses against PyTorch's own, the number's unit, files to results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cmbert.transfer.finetune.defaults import Asked
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.protocol import finetune
from cmbert.transfer.finetune.results import score_table, write_results
from cmbert.transfer.finetune.task_model import TaskModel
from cmbert.transfer.tasks.fields import Entity, Example
from cmbert.transfer.tasks.task import Task

SEVERAL = Task(name="m", labels=("甲", "乙", "丙"), problem_type="multi_label_classification")
NUMBER = Task(name="r", problem_type="regression")
TOKENS = Task(name="t", reader="entities", labels=("地名", "机构"), max_length=32)
TEXTS = ["今天天气很好", "不喜欢", "这家酒店的服务态度差，房间不干净" * 3, "好"]


def several() -> list[Example]:
    labels = ((0, 2), (), (1,), (0, 1, 2))
    return [Example(str(i), ((text, None),), labels=labels[i]) for i, text in enumerate(TEXTS)]


def numbers() -> list[Example]:
    return [Example(str(i), ((text, None),), value=2020.0 + 3 * i) for i, text in enumerate(TEXTS)]


def places() -> list[Example]:
    entities = ((Entity(0, 2, "地名"), Entity(4, 6, "机构")), (), (Entity(1, 3, "地名"), Entity(40, 42, "地名")), ())
    return [Example(str(i), ((text, None),), entities=entities[i]) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_loss_of_several_labels(request, kind):
    backbone = request.getfixturevalue(kind)
    items = prepare(backbone, SEVERAL, several(), 64)
    model = TaskModel(backbone, SEVERAL, 0).eval()
    scores = model(items)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    mean = F.binary_cross_entropy_with_logits(scores, targets)  # transformers' loss
    assert model.loss_sum(items).item() / model.num_targets(items) == pytest.approx(mean.item(), abs=1e-5)
    for row, found in zip(scores.sigmoid().tolist(), model.answer(items), strict=True):
        assert found.labels == tuple(place for place, share in enumerate(row) if share > 0.5)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_loss_of_numbers_and_their_unit(request, kind):
    backbone = request.getfixturevalue(kind)
    items = prepare(backbone, NUMBER, numbers(), 64)
    model = TaskModel(backbone, NUMBER, 0).eval()
    model.measure(items)
    standard = (torch.arange(4.0) - 1.5) / torch.arange(4.0).std(correction=0)
    mean = F.mse_loss(model(items)[:, 0], standard)
    assert model.loss_sum(items).item() / model.num_targets(items) == pytest.approx(mean.item(), abs=1e-5)
    before = [found.value for found in model.answer(items)]
    assert all(2015 < value < 2034 for value in before)
    model.fold_unit()
    assert [found.value for found in model.answer(items)] == pytest.approx(before, abs=1e-3)
    assert model(items)[:, 0].tolist() == pytest.approx(before, abs=1e-3)  # what a stock model says
    model.fold_unit()
    assert [found.value for found in model.answer(items)] == pytest.approx(before, abs=1e-3)


def test_bf16_says_numbers_of_many_digits(ours):
    items = prepare(ours, NUMBER, numbers(), 64)
    model = TaskModel(ours, NUMBER, 0).eval().to(torch.bfloat16)
    model.measure(items)
    before = [found.value for found in model.answer(items)]
    model.fold_unit()
    assert [found.value for found in model.answer(items)] == pytest.approx(before, abs=0.1)  # bf16 steps here are of 8


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_loss_of_tokens(request, kind):
    backbone = request.getfixturevalue(kind)
    items = prepare(backbone, TOKENS, places(), 32)
    model = TaskModel(backbone, TOKENS, 0).eval()
    scores = model(items)
    losses, num_tokens = 0.0, 0
    for item, row, found in zip(items, scores, model.answer(items), strict=True):
        (part,) = item.parts
        assert len(item.tags) == len(part.ids)
        assert (row[len(part.ids) :] == -torch.inf).all()
        (alone,) = model([item])
        torch.testing.assert_close(row[: len(part.ids)], alone, atol=1e-5, rtol=1e-5)
        for place, tag in enumerate(item.tags):
            if not part.special[place]:
                losses += F.cross_entropy(row[place], torch.tensor(tag)).item()
                num_tokens += 1
        assert all(0 <= start < end <= len(item.example.parts[0][0]) for start, end, _ in found.entities)
    assert model.num_targets(items) == num_tokens
    assert model.loss_sum(items).item() == pytest.approx(losses, abs=1e-4)
    model.loss_sum(items).backward()
    assert torch.isfinite(model.classifier.weight.grad).all()


def write_task(folder: Path, **splits: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    for name, records in splits.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.json").write_text(lines, encoding="utf-8")


def learn(ours, task: Task, folder: Path, output: Path, epochs: int = 12) -> dict:
    asked = Asked(learning_rates=(5e-3,), batch_sizes=(8,), epochs=(epochs,))
    result = finetune(ours, task, folder, output, model_name="mine", asked=asked, num_seeds=1)
    write_results(output)
    return result


def predictions(output: Path, task: Task) -> list[dict]:
    path = output / task.name / "mine" / task.predictions_file
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(index: int) -> tuple[bool, bool, str]:
    """A review, whether it is good, whether it is of a hotel; the words tell."""
    good, hotel = index % 2 == 0, index % 3 == 0
    return good, hotel, f"今天{'酒店' if hotel else '天气'}{'很好' if good else '很差'}，第{index % 7}次"


def test_several_labels_from_file_to_table(ours, tmp_path):
    records = []
    for index in range(72):
        good, hotel, text = words(index)
        records.append({"id": index, "sentence": text, "label": ["好评"] * good + ["酒店"] * hotel})
    write_task(tmp_path / "data", train=records[:48], dev=records[48:], test=[{"sentence": "今天酒店很好，第3次"}])
    task = Task(name="several", problem_type="multi_label_classification")
    result = learn(ours, task, tmp_path / "data", tmp_path / "out")
    assert result["labels"] == ["好评", "酒店"]
    assert result["splits"]["dev"]["micro_f1"]["mean"] > 90
    assert "majority_share" not in result["splits"]["dev"]
    assert predictions(tmp_path / "out", task) == [{"id": 0, "label": ["好评", "酒店"]}]
    head, _ = score_table([result])
    assert head == ["model", "several dev, micro f1", "several dev, macro f1", "several test"]
    assert json.loads((tmp_path / "out/several/mine/identity.json").read_text())["task"]["labels"] == ["好评", "酒店"]


def test_numbers_from_file_to_table(ours, tmp_path):
    records = []
    for index in range(72):
        good, hotel, text = words(index)
        records.append({"sentence": text, "label": 100 + 20 * good + 5 * hotel})
    write_task(tmp_path / "data", train=records[:48], dev=records[48:], test=records[:2])
    task = Task(name="numbers", problem_type="regression")
    result = learn(ours, task, tmp_path / "data", tmp_path / "out")
    assert result["splits"]["dev"]["spearman"]["mean"] > 80
    assert result["splits"]["test"]["pearson"]["values"] == [pytest.approx(100)]  # of two
    first, second = predictions(tmp_path / "out", task)
    assert 110 < first["label"] < 140  # 125 in the file, whose unit the model speaks
    assert 85 < second["label"] < 115  # 100
    assert "numbers dev, spearman" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


def test_entities_from_file_to_table(ours, tmp_path, caplog):
    names = ("北京", "上海", "广州", "武汉")
    records = []
    for index in range(72):
        name = names[index % 4]
        text = f"{'今天' * (index % 3)}去{name}，很好"
        start = text.index(name)
        records.append({"id": index, "text": text, "label": {"地名": {name: [[start, start + 1]]}}})
    long = {"text": "今天" * 60 + "去北京", "label": [[121, 123, "地名"]]}
    bare = {"id": 7, "text": "去上海，很好"}
    write_task(tmp_path / "data", train=records[:48], dev=[*records[48:], long], test=[bare])
    task = Task(name="places", reader="entities", max_length=32)
    with caplog.at_level("INFO"):
        result = learn(ours, task, tmp_path / "data", tmp_path / "out", 20)
    assert result["labels"] == ["地名"]
    assert result["entities"] == 73
    assert result["entities_beyond_the_cut"] == 1
    assert "73 entities; 1 entities beyond the cut" in caplog.text
    dev = result["splits"]["dev"]
    assert (dev["entities"], dev["entities_out_of_reach"]) == (25, 1 + result["entities_with_an_edge_inside_a_token"])
    assert dev["entity_f1"]["mean"] > 60
    assert dev["recall"]["mean"] <= 100 * 24 / 25  # what was cut away counts as missed
    (said,) = predictions(tmp_path / "out", task)
    assert (said["id"], said["text"]) == (7, "去上海，很好")
    head, rows = score_table([result])
    assert head[1:4] == ["places dev, entity f1", "places dev, precision", "places dev, recall"]
    assert len(rows) == 1


def test_conll_and_json_of_the_same_texts_learn_the_same(ours, tmp_path):
    lines, records = [], []
    for index in range(24):
        name = ("北京", "上海")[index % 2]
        text = f"去{name}很好"
        tags = ["O", "B-地名", "I-地名", "O", "O"]
        lines += [*(f"{char}\t{tag}" for char, tag in zip(text, tags, strict=True)), ""]
        records.append({"text": text, "entities": [[1, 3, "地名"]]})
    write_task(tmp_path / "json", train=records, dev=records)
    folder = tmp_path / "conll"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    by_lines = Task(name="a", reader="conll", train=("train.txt",), dev=("dev.txt",), test=())
    found = [
        learn(ours, task, place, tmp_path / "out", 2)
        for task, place in ((by_lines, folder), (replace(by_lines, name="b", reader="entities", train=("train.json",),
                                                         dev=("dev.json",)), tmp_path / "json"))
    ]  # fmt: skip
    assert found[0]["curves"] == found[1]["curves"]
