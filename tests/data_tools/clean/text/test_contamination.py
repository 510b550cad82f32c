"""Runs of 13 Hanzi or words: the compiled search finds what a set of substrings finds, and only what is enough."""

import re
from pathlib import Path

import numpy as np
import pytest

from cmbert.files.whole import write_json
from data_tools.clean.config import NormalizeConfig
from data_tools.clean.text.contamination import MOST_OWNERS, NAMES_FILE, EvaluationTexts, index_of, runs_of
from data_tools.clean.text.letters import CANONICAL
from data_tools.clean.text.normalization import normalizer

ITEM = "下列关于鲁迅先生早年在日本仙台学医经历的说法，哪一项符合原文的意思？"
OTHER = "今天早上我们一家三口去了城西的植物园，花开得正好，孩子在草地上跑来跑去。"
UNIT = re.compile(r"[\u3005-\u3007\u3040-\u312f\u3400-\u9fff]|[a-z0-9]+")


def looked_up(folder: Path, texts: list[tuple[int, str]], names: tuple[str, ...] = ("clue",)) -> EvaluationTexts:
    arrays, _ = index_of(((number, runs_of(CANONICAL(text))) for number, text in texts), len(names))
    for file, array in arrays.items():
        np.save(folder / file, array)
    write_json(folder / NAMES_FILE, list(names))
    return EvaluationTexts(folder)


def naive_runs(text: str) -> set[tuple[str, ...]]:
    units = UNIT.findall(text.lower())
    return {tuple(units[i : i + 13]) for i in range(len(units) - 12)}


def drawn(draw: np.random.Generator, length: int) -> str:
    """Return characters of a small alphabet, so that runs come again; words, marks and spaces among them."""
    pieces = ["的", "是", "好", "不", "人", "看 ", "，", "。\n", "ab", "Cd ", "7", "—"]
    return "".join(
        draw.choice(pieces, length, p=[0.3, 0.3, 0.12, 0.05, 0.05, 0.03, 0.03, 0.02, 0.02, 0.02, 0.03, 0.03])
    )


@pytest.mark.parametrize("min_share", [0.0, 0.3, 1.0])
def test_what_is_found_is_what_sets_of_substrings_have_in_common(tmp_path: Path, min_share: float) -> None:
    draw = np.random.default_rng(0)
    items = [(int(number), drawn(draw, int(length))) for number, length in draw.integers((0, 5), (3, 60), (300, 2))]
    known = looked_up(tmp_path, items, ("a", "b", "c"))
    by_item = [(number, naive_runs(text)) for number, text in items]
    outcomes = [0, 0]
    for _ in range(300):
        parts = [drawn(draw, int(length)) for length in draw.integers(0, 40, 3)]
        for _, item in (items[int(number)] for number in draw.integers(0, len(items), 2)):
            whole = draw.random() < 0.2
            first, last = (0, len(item)) if whole else sorted(draw.integers(0, len(item) + 1, 2).tolist())
            parts.insert(int(draw.integers(0, 4)), item[first:last])
        text = "，".join(parts)
        own = naive_runs(text)
        shares = [(number, len(own & runs) / min(len(own), len(runs))) for number, runs in by_item if own & runs]
        wanted = sorted({"abc"[number] for number, share in shares if share >= min_share})
        found = known.find(text, min_share)
        outcomes[found is not None] += 1
        assert list(found.sets if found else ()) == wanted
        if found:
            assert found.share in [share for _, share in shares]
            assert any(naive_runs(found.run) <= runs for _, runs in by_item), "the run is one of an item"
    assert min(outcomes) > 20


def test_a_planted_text_is_found_however_it_is_written(tmp_path: Path) -> None:
    known, normalize = looked_up(tmp_path, [(0, ITEM)]), normalizer(NormalizeConfig())
    for text in (
        ITEM,
        OTHER * 40 + ITEM + OTHER * 40,
        "".join(f"{character} " for character in ITEM),
        ITEM.replace("日本", "<b>日本</b>").replace("，", "\n\n"),
        ITEM.replace("经历", "经\u200b历").replace("学医", "“学医”"),
        ITEM.replace("鲁", "⿂日").replace("日", "⽇").replace("⿂⽇", "鲁"),  # radicals, as from PDF files
    ):
        found = known.find(normalize(text), 0.5)
        assert found, text
        assert (found.sets, found.share) == (("clue",), 1)
        assert naive_runs(found.run) == naive_runs(ITEM)
    assert (part := known.find(ITEM[:24], 0.5))
    assert part.share == 1, "all of a text that is a part of it"
    assert known.find(OTHER + ITEM[5:28] + OTHER, 0.5), "more than half of it"


def test_latin_words_are_units(tmp_path: Path) -> None:
    item = "The Naïve Bayes classifier of the 2ND chapter assumes that all features are independent"
    known = looked_up(tmp_path, [(0, item)])
    for text in (item, item.upper(), item.replace("ï", "i\u0308"), "Ｔｈｅ" + item[3:], item.replace(" ", ", ")):
        assert known.find(text, 0.5), text
    assert known.find(item.replace("chapter", "part"), 0.0) is None
    assert known.find("assumesthatallfeaturesareindependent", 0.0) is None
    assert looked_up(tmp_path, [(0, "an international organization")]).find("international organizations", 0.0) is None


def test_too_little_is_not_found(tmp_path: Path) -> None:
    law = "中华人民共和国道路交通安全法"
    known = looked_up(
        tmp_path,
        [(0, ITEM), (0, f"滞销大爷、{law}、湖南省、车牌号码、二十四小时便民热线"), (0, "少于十三个字的一句话")],
    )
    assert known.find(OTHER, 0.0) is None
    assert known.find(OTHER + ITEM[:12] + OTHER, 0.0) is None, "12 in common"
    assert known.find(f"违反《{law}》的，依法处理；{OTHER}", 0.5) is None, "a phrase of many texts"
    assert known.find(f"违反《{law}》的，依法处理；{OTHER}", 0.0), "one run is enough if that is asked for"
    assert known.find("少于十三个字的一句话", 0.0) is None
    assert known.find("", 0.0) is None
    assert looked_up(tmp_path, []).find(ITEM, 0.0) is None


def test_what_many_texts_hold_tells_none(tmp_path: Path) -> None:
    task = "请阅读下面的文章，从四个选项中选出最符合文意的一项。"
    draw = np.random.default_rng(1)
    questions = ["".join(map(chr, draw.integers(0x4E00, 0x9000, 30))) for _ in range(MOST_OWNERS + 1)]
    known = looked_up(tmp_path, [(0, task + question) for question in questions])
    assert known.find(OTHER + task + OTHER, 0.0) is None
    assert known.find(questions[7], 0.5)
    again = looked_up(tmp_path, [(0, task)] * 200)  # one text of many records
    assert again.find(task, 0.5)


def test_sets_are_told_apart(tmp_path: Path) -> None:
    known = looked_up(tmp_path, [(0, ITEM), (1, ITEM), (2, OTHER)], ("clue", "c-mteb", "simclue"))
    for text, names in ((ITEM, ("clue", "c-mteb")), (ITEM + OTHER, ("clue", "c-mteb", "simclue"))):
        assert (found := known.find(text, 0.5))
        assert found.sets == names
