"""Heads, windows and scores against naive references; the same batch gives the same result, padded or packed."""

import random

import pytest
import torch
import torch.nn.functional as F

from cmbert.transfer.finetune import trial as trial_module
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.finetune.task_model import TaskModel, mean_by_part
from cmbert.transfer.finetune.trial import (
    Data,
    Setting,
    answer_all,
    backward,
    by_tokens,
    in_chunks,
    run_trial,
)
from cmbert.transfer.tasks.fields import Example
from cmbert.transfer.tasks.scores import f1_scores
from cmbert.transfer.tasks.spans import exact_match, span_f1
from cmbert.transfer.tasks.task import Task

TEXTS = ["今天天气很好", "不喜欢", "这家酒店的服务态度差，房间不干净" * 3, "好"]
CLASSES = Task(name="c", labels=("0", "1", "2"))
CHOICES = Task(name="m", reader="c3")
SPANS = Task(name="s", reader="cmrc")


def classes() -> list[Example]:
    return [Example(str(i), ((text, None),), i % 3) for i, text in enumerate(TEXTS)]


def choices() -> list[Example]:
    return [
        Example("0", tuple((f"问{i}", text) for i, text in enumerate(TEXTS[:3])), 2),
        Example("1", tuple((f"问{i}", text) for i, text in enumerate(TEXTS[2:])), 0),
    ]


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize(("task", "make"), [(CLASSES, classes), (CHOICES, choices)])
def test_a_batch_is_its_examples_one_by_one(request, kind, task, make):
    backbone = request.getfixturevalue(kind)
    model = TaskModel(backbone, task, 0).eval()
    items = prepare(backbone, task, make(), 64)
    together = model(items)
    for row, item in zip(together, items, strict=True):
        alone = model([item])[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert (row[len(alone) :] == -torch.inf).all()
    labels = torch.tensor([item.example.label for item in items])
    assert model.num_targets(items) == len(items)
    expected = F.cross_entropy(together, labels).item() * len(items)
    assert model.loss_sum(items).item() == pytest.approx(expected, abs=1e-5)


def test_a_transformers_encoder_is_read_as_its_authors_do(theirs):
    """The hidden states that the head sees are those of the model called alone, without padding."""
    (part,) = theirs.read([("今天天气很好", "酒店很差")], 64)
    ids = theirs.tokenizer("今天天气很好", "酒店很差", return_tensors="pt")
    assert part.ids == ids["input_ids"][0].tolist()
    assert 1 in part.type_ids
    theirs.eval()
    ids_T, types_T = torch.tensor([*part.ids, 2, 5, 3]), torch.tensor([*part.type_ids, 0, 0, 0])
    hidden = theirs(ids_T, types_T, [len(part.ids), 3])[: len(part.ids)]
    torch.testing.assert_close(hidden, theirs.encoder(**ids).last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_mean_by_part():
    hidden = torch.arange(12.0).view(6, 2)
    expected = torch.stack([hidden[:2].mean(0), hidden[2:3].mean(0), hidden[3:].mean(0)])
    torch.testing.assert_close(mean_by_part(hidden, [2, 1, 3]), expected)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_texts_that_do_not_fit_are_cut_and_counted(request, kind):
    backbone = request.getfixturevalue(kind)
    parts = backbone.read([(TEXTS[0], None), (TEXTS[2], None), (TEXTS[2], TEXTS[2])], 16)
    assert [part.whole for part in parts] == [True, False, False]
    assert max(len(part.ids) for part in parts) == 16
    assert parts[2].second.count(True) in (6, 7)  # both texts lose their end


def test_special_tokens_in_a_text_are_text(ours):
    (part,) = ours.read([("[MASK]", None)], 64)
    assert 4 not in part.ids


def span_example(context: str, answer: str) -> Example:
    return Example("q", (("哪年？", context),), None, (answer,), context.index(answer))


@pytest.mark.parametrize("max_length", [24, 40, 128])
def test_windows_cover_the_text_and_find_the_answer(ours, max_length):
    context = "今天天气很好，" * 4 + "它在1862年建成。" + "房间不干净。" * 3
    item = prepare(ours, SPANS, [span_example(context, "1862年")], max_length)[0]
    seen = set()
    for part, (first, last) in zip(item.parts, item.spans, strict=True):
        assert len(part.ids) <= max_length
        seen |= {char for p, s in zip(part.offsets, part.second, strict=True) if s for char in range(*p)}
        if (first, last) != (0, 0):
            found = context[part.offsets[first][0] : part.offsets[last][1]]
            assert "1862年" in found
            assert len(found) <= len("1862年") + 2  # tokens may not end where the answer does
    assert seen == set(range(len(context)))
    assert any(span != (0, 0) for span in item.spans)
    assert (len(item.parts) == 1) == (max_length == 128)


def test_span_loss_and_answer(ours):
    model = TaskModel(ours, SPANS, 0).eval()
    context = "今天天气很好，它在1862年建成。"
    items = prepare(ours, SPANS, [span_example(context, "1862年"), span_example("1862年的今天", "今天")], 64)
    scores = model(items)
    losses = []
    for place, item in enumerate(items):
        length = len(item.parts[0].ids)
        assert (scores[place, length:] == -torch.inf).all()
        for side in (0, 1):
            losses.append(F.cross_entropy(scores[place, :length, side], torch.tensor(item.spans[0][side])))
    assert model.num_targets(items) == len(losses)
    assert model.loss_sum(items).item() == pytest.approx(torch.stack(losses).sum().item(), abs=1e-5)
    for item, found, score in zip(items, model.answer(items), scores, strict=True):
        part = item.parts[0]
        places = [place for place, second in enumerate(part.second) if second]
        pairs = [(score[i, 0] + score[j, 1], i, j) for i in places for j in places if i <= j < i + 50]
        _, start, end = max(pairs)
        assert found.text == item.example.parts[0][1][part.offsets[start][0] : part.offsets[end][1]]


def test_span_scores():
    assert exact_match("《红楼梦》", ["红楼梦"]) == 1
    assert exact_match("红楼", ["红楼梦"]) == 0
    assert span_f1("红楼", ["水浒", "红楼梦"]) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert span_f1("78.1", ["78.1"]) == 1
    assert span_f1("水", ["红楼梦"]) == 0


def test_macro_f1():
    _, macro = f1_scores([(0,), (0,), (1,), (2,)], [(0,), (1,), (1,), (1,)], 3)
    assert macro == pytest.approx(100 * (2 / 3 + 2 / 4 + 0) / 3)


def test_forwards_hold_what_fits(ours, monkeypatch):
    monkeypatch.setattr("cmbert.transfer.finetune.trial.FORWARD_TOKENS", 120)
    examples = [Example(str(i), (("好" * random.Random(i).randint(1, 60), None),), 0) for i in range(30)]
    items = prepare(ours, CLASSES, examples, 128)
    parts = list(by_tokens(items))
    assert sorted(item.example.id for part in parts for item in part) == sorted(example.id for example in examples)
    for part in parts:
        longest = max(len(part.ids) for item in part for part in item.parts)
        assert len(part) == 1 or len(part) * longest <= 120


def uneven(kind: str) -> list[Example]:
    """Twelve examples whose texts, choices, candidates and windows differ in length and number; all with answers."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("今天气很好坏不喜欢这家酒店的服务", k=1 + 7 * i)) for i in range(12)]
    if kind == "classification":
        return [Example(str(i), ((text, None),), i % 3) for i, text in enumerate(texts)]
    if kind == "span":
        return [span_example(text * (1 + i % 3 * 4) + "1862年。", "1862年") for i, text in enumerate(texts)]
    fewest, most = (2, 4) if kind == "choice" else (1, 10)
    return [
        Example(str(i), tuple((f"{j}问" * (i + 1), text) for j in range(most if i % 2 else fewest)), i % fewest)
        for i, text in enumerate(texts)
    ]


TASK_OF = {"classification": CLASSES, "choice": CHOICES, "idiom": Task(name="i", reader="chid"), "span": SPANS}


@pytest.mark.parametrize("kind", list(TASK_OF))
def test_a_batch_in_several_forwards_has_the_loss_and_gradient_of_one(ours, monkeypatch, kind):
    items = prepare(ours, TASK_OF[kind], uneven(kind), 64)
    found = []
    for tokens in (1 << 20, 300):
        monkeypatch.setattr("cmbert.transfer.finetune.trial.FORWARD_TOKENS", tokens)
        model = TaskModel(ours, TASK_OF[kind], 0).eval()
        model.zero_grad()
        loss = backward(model, items) / model.num_targets(items)
        gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        found.append((len(list(by_tokens(items))), loss, torch.cat([gradient.flatten() for gradient in gradients])))
    (one_part, whole, gradient), (num_parts, cut, cut_gradient) = found
    assert one_part == 1 < num_parts
    assert cut == pytest.approx(whole, abs=1e-5)
    assert (cut_gradient - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("kind", list(TASK_OF))
def test_an_epochs_loss_is_the_mean_over_its_targets(ours, monkeypatch, tmp_path, kind):
    monkeypatch.setattr("cmbert.transfer.finetune.task_model.DROPOUT", 0.0)
    task = TASK_OF[kind]
    items = prepare(ours, task, uneven(kind), 64)
    data = Data(items, items, [])
    still = Setting(learning_rate=0.0, batch_size=5, epochs=1)  # batches of 5, 5 and 2 examples
    model = TaskModel(ours, task, 0).eval()
    expected = model.loss_sum(items).item() / model.num_targets(items)
    (loss,) = run_trial(ours, task, data, still, 0, tmp_path / "saved.pt").losses
    assert loss == pytest.approx(expected, abs=1e-5)


def test_a_book_is_read_in_parts(ours, monkeypatch):
    """More windows than one forward holds: the same loss, gradients and answer as in one."""
    model = TaskModel(ours, SPANS, 0).eval()
    items = prepare(
        ours,
        SPANS,
        [span_example("今天天气很好，" * 40 + "它在1862年建成。", "1862年"), span_example("很好", "好")],
        32,
    )
    found, losses, gradients = [], [], []
    for tokens in (16_384, 70):
        monkeypatch.setattr(trial_module, "FORWARD_TOKENS", tokens)
        model.zero_grad()
        losses.append(backward(model, items))
        gradients.append(model.classifier.weight.grad.clone())
        found.append([(answer.text, round(answer.score, 3)) for answer in answer_all(model, items)])
        parts = list(by_tokens([part for item in items for part in in_chunks(item)]))
        assert all(sum(len(part.ids) for item in part for part in item.parts) <= tokens for part in parts)
    assert len(parts) > 10
    assert found[0] == found[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
