"""Scores against naive references, and how answers are spelled."""

import math
import random

import pytest

from cmbert.transfer.tasks.fields import Entity, Example
from cmbert.transfer.tasks.scores import (
    Found,
    answer_text,
    correlations,
    entity_scores,
    f1_scores,
    score,
    submission,
)
from cmbert.transfer.tasks.task import Task

SEVERAL = Task(name="m", labels=("甲", "乙", "丙"), problem_type="multi_label_classification")
NUMBER = Task(name="r", problem_type="regression")
TOKENS = Task(name="t", reader="entities", labels=("地名",))


def chunks(tags):
    """conlleval's chunks of B-, I- and O tags, tag by tag: (type, first, last)."""
    found, start = set(), None
    for place, tag in enumerate([*tags, "O"]):
        before = tags[place - 1] if place else "O"
        ends = before != "O" and (tag[0] in "BO" or tag[2:] != before[2:])
        if ends:
            found.add((before[2:], start, place - 1))
        if tag != "O" and (tag[0] == "B" or before == "O" or tag[2:] != before[2:]):
            start = place
    return found


def test_entities_are_counted_as_conlleval_counts_tags():
    from cmbert.transfer.tasks.tags import entities_of

    outputs = ("O", "B-甲", "I-甲", "B-乙", "I-乙")
    draw = random.Random(0)
    for _ in range(2_000):
        sides = [[[draw.choice(outputs) for _ in range(n)] for n in (3, 5, 8)] for _ in "ab"]
        truth, answer = ([chunks(tags) for tags in side] for side in sides)
        hits, said, told = (
            sum(map(len, sets)) for sets in ([a & b for a, b in zip(truth, answer, strict=True)], answer, truth)
        )
        precision, recall = hits / max(said, 1), hits / max(told, 1)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        ours = [
            [entities_of([*map(outputs.index, t)], [(i, i + 1) for i in range(len(t))], [False] * len(t), outputs)
             for t in side] for side in sides
        ]  # fmt: skip
        assert entity_scores(*ours) == pytest.approx((100 * f1, 100 * precision, 100 * recall))


def test_f1_of_labels_counts_each_yes_and_no():
    draw = random.Random(0)
    for _ in range(200):
        sides = [[tuple(label for label in range(4) if draw.random() < 0.4) for _ in range(6)] for _ in "ab"]
        tables = [[[label in labels for labels in side] for label in range(4)] for side in sides]
        counts = [
            tuple(sum(pair == kind for pair in zip(*rows, strict=True)) for kind in ((1, 1), (0, 1), (1, 0)))
            for rows in zip(*tables, strict=True)
        ]
        each = [2 * hits / (2 * hits + false + missed) if hits else 0.0 for hits, false, missed in counts]
        hits, false, missed = map(sum, zip(*counts, strict=True))
        micro = 2 * hits / (2 * hits + false + missed) if hits else 0.0
        assert f1_scores(*sides, 4) == pytest.approx((100 * micro, 100 * sum(each) / 4))


def ranks(values):
    """Mean rank of each value; equal ones share theirs."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def pearson(first, second):
    means = sum(first) / len(first), sum(second) / len(second)
    sides = [[value - mean for value in side] for side, mean in zip((first, second), means, strict=True)]
    product = sum(a * b for a, b in zip(*sides, strict=True))
    return product / math.sqrt(sum(a * a for a in sides[0]) * sum(b * b for b in sides[1]))


def test_correlations():
    draw = random.Random(0)
    for _ in range(100):
        first, second = ([draw.randint(0, 5) / 2 for _ in range(9)] for _ in "ab")
        expected = 100 * pearson(ranks(first), ranks(second)), 100 * pearson(first, second)
        assert correlations(first, second) == pytest.approx(expected)
    assert correlations([1.0, 2.0], [3.0, 3.0]) == (0.0, 0.0)
    assert correlations([1.0, 1.0], [3.0, 4.0]) == (0.0, 0.0)
    assert correlations([1.0, 2.0], [3.0, math.nan]) == (0.0, 0.0)


def test_the_scores_of_each_kind():
    several = [Example("0", (("好", None),), labels=(0, 1)), Example("1", (("坏", None),), labels=())]
    assert score(SEVERAL, several, [Found(labels=(0,)), Found(labels=())]) == {
        "micro_f1": pytest.approx(100 * 2 / 3),
        "macro_f1": pytest.approx(100 / 3),
    }
    numbers = [Example(str(value), (("好", None),), value=value) for value in (1.0, 2.0, 3.0)]
    found = score(NUMBER, numbers, [Found(value=value) for value in (10.0, 20.0, 90.0)])
    assert list(found) == ["spearman", "pearson"]
    assert found["spearman"] == pytest.approx(100)
    assert 90 < found["pearson"] < 95
    texts = [Example("0", (("北京和北京", None),), entities=(Entity(0, 2, "地名"), Entity(3, 5, "地名")))]
    assert score(TOKENS, texts, [Found(entities=(Entity(0, 2, "地名"),))]) == {
        "entity_f1": pytest.approx(100 * 2 / 3),
        "precision": 100.0,
        "recall": 50.0,
    }


def test_answers_are_kept_as_text_and_submitted_as_clue_does():
    example = Example("0", (("北京和北京", None),))
    places = Found(entities=(Entity(0, 2, "地名"), Entity(3, 5, "地名")))
    assert answer_text(TOKENS, places) == '[[0, 2, "地名"], [3, 5, "地名"]]'
    said = submission(TOKENS, example, answer_text(TOKENS, places))
    assert said == {"text": "北京和北京", "label": {"地名": {"北京": [[0, 1], [3, 4]]}}}  # CLUENER's, ends included
    assert submission(SEVERAL, example, answer_text(SEVERAL, Found(labels=(0, 2)))) == {"label": ["甲", "丙"]}
    assert submission(NUMBER, example, answer_text(NUMBER, Found(value=2.5))) == {"label": 2.5}
