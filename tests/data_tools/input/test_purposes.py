"""Tools that choose texts by a hash choose independently of each other: each has a purpose of its own."""

import ast
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_tools.input.document import Purpose, text_hash

PACKAGE = Path(__file__).parents[3] / "data_tools"
TEXTS = [f"第{number}篇：今天天气很好，我们去公园。" for number in range(10_000)]
SHARE = 0.05
SIGMAS = 5  # one false alarm in two million pairs


@pytest.fixture(scope="module")
def hashes() -> dict[Purpose, np.ndarray]:
    return {purpose: np.array([text_hash(text, purpose) for text in TEXTS], np.uint64) for purpose in Purpose}


@pytest.mark.parametrize(("one", "other"), list(combinations(Purpose, 2)), ids=str)
def test_two_purposes_choose_independently(hashes: dict[Purpose, np.ndarray], one: Purpose, other: Purpose) -> None:
    chosen = [hashes[purpose] < np.uint64(int(SHARE * 2**64)) for purpose in (one, other)]
    expected = len(TEXTS) * SHARE**2
    assert abs(np.count_nonzero(chosen[0] & chosen[1]) - expected) < SIGMAS * np.sqrt(expected)
    left = hashes[other][~chosen[0]]  # what the first tool has not taken holds its share of what the second takes
    taken, due = np.count_nonzero(left < np.uint64(int(SHARE * 2**64))), SHARE * len(left)
    assert abs(taken - due) < SIGMAS * np.sqrt(due)


def test_every_purpose_has_one_place() -> None:
    used: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Purpose":
                used[node.attr] += 1
    assert used == {purpose.name: 1 for purpose in Purpose}
