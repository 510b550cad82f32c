"""Every text that is dropped has its reason, and the measures of repetition are those of a naive reference."""

from collections import Counter

import pytest

from data_tools.clean.config import QualityConfig
from data_tools.clean.text.characters import HANZI_RANGES, code_points
from data_tools.clean.text.quality import character_shares, drop_reason, repeated_share, top_gram_share
from tests.data_tools.clean.texts import GOOD, LONG


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, None) for text in (*GOOD, LONG, "\n".join(GOOD))),
        ("太短了", "too_short"),
        (LONG * 20_000, "too_long"),
        ("This text is in English and says nothing at all about anything.", "few_hanzi"),
        ("★☆好★☆的★☆是★☆吗★☆来★☆吧★☆去★☆了★☆看★☆", "few_hanzi"),
        ("好的！！是吗？？来吧、、去了。。看看！！想说——什么呢，，真的", "much_punctuation"),
        ("我的电话号码是这个吗13800138000，订单号码是240131001请查收一下好吗谢谢你了", "many_digits"),
        ("\n".join([GOOD[0], GOOD[1], GOOD[0], GOOD[0]]), "duplicate_lines"),
        (
            "\n".join(["首页新闻体育财经娱乐科技汽车", "登录注册收藏本站设为首页帮助", *(t[:20] for t in GOOD)]),
            "no_sentences",
        ),
        (GOOD[0] * 4, "repetitive"),
        ("".join(f"{chr(0x4E00 + 7 * i)}真不错啊{chr(0x5000 + 11 * i)}" for i in range(40)), "one_phrase"),
    ],
)
def test_reasons(text: str, reason: str | None) -> None:
    assert drop_reason(text, QualityConfig()) == reason


def test_measures_against_a_naive_reference() -> None:
    text = GOOD[0] + GOOD[1] + GOOD[0][5:30] + "好好好好好好好好好好好好" + GOOD[2]
    covered, seen = [False] * len(text), set()
    for i in range(len(text) - 9):
        if text[i : i + 10] in seen:
            covered[i : i + 10] = [True] * 10
        seen.add(text[i : i + 10])
    assert repeated_share(code_points(text)) == sum(covered) / len(text)
    grams = [text[i : i + 4] for i in range(len(text) - 3)]
    assert top_gram_share(code_points(text)) == max(map(grams.count, grams)) * 4 / len(text)
    assert repeated_share(code_points("短")) == 0.0


def test_shares_are_those_of_the_characters() -> None:
    text = GOOD[0] + "〇㐀𠮷豈 \u3000\n\xa0٣１２3½①Ⅷabcéñ한글かなカナ，。！😀🏳\u200d\U0010ffff\ue000" + chr(0x323B0)
    hanzi = sum(any(first <= ord(c) <= last for first, last in HANZI_RANGES) for c in text)
    kinds = Counter(
        "space" if c.isspace() else "digit" if c.isdigit() else "letter" if c.isalpha() else "other"
        for c in text
        if not any(first <= ord(c) <= last for first, last in HANZI_RANGES)
    )
    total = len(text) - kinds["space"]
    assert character_shares(code_points(text)) == (hanzi / total, kinds["other"] / total, kinds["digit"] / total)
