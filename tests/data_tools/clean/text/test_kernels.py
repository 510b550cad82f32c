"""What is compiled, beside the regular expressions and sets of strings that say the same and are read more easily."""

import re
import unicodedata
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean.config import NormalizeConfig, QualityConfig
from data_tools.clean.text.characters import LINE_ENDS, character_classes, code_points, text_of
from data_tools.clean.text.compatibility import fold_compatibility
from data_tools.clean.text.decodability import UNDECODABLE
from data_tools.clean.text.kernels import GRAM_MULTIPLIER, GRAM_SHIFT
from data_tools.clean.text.letters import (
    CANONICAL,
    GRAM_LETTERS,
    KEPT_BELOW,
    STAND_IN,
    canonical_letters,
    canonical_letters_by_nfkc,
    nfkc_letters,
    sketch,
)
from data_tools.clean.text.markup import strip_html
from data_tools.clean.text.normalization import ACTIONS, CONTROL, EMAIL, FOLD_WIDTH, URL, Removed, normalizer, squeeze
from data_tools.clean.text.quality import (
    character_shares,
    drop_reason,
    duplicate_line_share,
    ended_line_share,
    gram_hashes,
    measured,
    repeated_share,
    top_gram_share,
)

LINE_END = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
SPACES = re.compile("[ \t\xa0\u2000-\u200a\u202f\u205f\u3000]+")
ODD = (
    "\r\n\x0b\x0c\x85\u2028 \t\xa0\u2003\u3000\x00\x07\x7f\x81\xad\u200b\ufeff\ufffd\ue000\ud800\udfff\U000f1234"
    "\U0010ffff\U0001fffe，：ＡＢ１％＠～⽅ｶﾞﾊﾟ㎏ﬁ①²\u1680\u0301\u0316\u1100\u1161\u11a8か\u3099e<>&;@/.:w一二三。"
    "\x1c𠮷😀İΣς\uac00Å"
)
PIECES = (
    "\r\n",
    "\n\n\n\n",
    " \n ",
    "a@b.com",
    "http://a.cn/b",
    "www.a.b",
    "<p>",
    "&nbsp;",
    "<email>",
    "今天天气很好",
    "  ",
)
TEXTS = st.lists(st.one_of(st.sampled_from(ODD), st.sampled_from(PIECES), st.characters()), max_size=60).map("".join)
SENTENCE = "今天天气很好，我们去公园"
LINES = st.lists(
    st.sampled_from((SENTENCE, f"{SENTENCE}。", "目录", "\t", " 目录\u3000", "", "a" * 10, "一。 \x1c"))
).map("\n".join)
REPEATING = st.lists(st.sampled_from(("一", "二", "一二三四五六七八九十", "好" * 13, "\n")), max_size=60).map("".join)
CONFIGS = (
    NormalizeConfig(),
    NormalizeConfig(fold_width=False, fold_compatibility=False, squeeze_spaces=False, urls="remove"),
    NormalizeConfig(fold_compatibility=False, emails="keep", urls="replace"),
    NormalizeConfig(strip_html=False, emails="keep"),
)


def naive_normalize(text: str, config: NormalizeConfig, removed: Removed) -> str:
    """One regular expression after the other."""
    text = strip_html(text, removed.note) if config.strip_html else text
    text = LINE_END.sub("\n", text)
    text = text.translate(FOLD_WIDTH) if config.fold_width else text
    text, undecodable = UNDECODABLE.subn("", text)
    text, controls = CONTROL.subn("", text)
    text = fold_compatibility(text, removed.note) if config.fold_compatibility else text
    text = unicodedata.normalize("NFC", text)
    for kind, count in (("undecodable_character", undecodable), ("control_character", controls)):
        if count:
            removed.count(kind, count, count)
    for kind, pattern, action in (("url", URL, config.urls), ("email", EMAIL, config.emails)):
        if action != "keep":
            for found in pattern.findall(text):
                removed.note(kind, found)
            text = pattern.sub((ACTIONS[action] or "").format(kind), text)
    return naive_squeeze(text) if config.squeeze_spaces else text


def naive_squeeze(text: str) -> str:
    return re.sub("\n{3,}", "\n\n", re.sub(" ?\n ?", "\n", SPACES.sub(" ", text))).strip()


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.sampled_from(CONFIGS))
def test_normalisation(text: str, config: NormalizeConfig) -> None:
    removed, expected = Removed(), Removed()
    assert normalizer(config)(text, removed) == naive_normalize(text, config, expected)
    assert vars(removed) == vars(expected)


def test_normalisation_of_every_character() -> None:
    """Between letters, so that nothing is trimmed; beyond the assigned planes one in 64."""
    normalize, config = normalizer(NormalizeConfig()), NormalizeConfig()
    for first, step in ((first, 1 if first < 0x32400 else 64) for first in range(0, 0x110000, 0x200)):
        text = "".join(f"一{chr(code)}b" for code in range(first, first + 0x200, step))
        assert normalize(text) == naive_normalize(text, config, Removed()), hex(first)


@settings(deadline=None, max_examples=60)
@given(st.one_of(TEXTS, LINES))
def test_spaces(text: str) -> None:
    assert squeeze(text) == naive_squeeze(text)


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_code_points_there_and_back(text: str) -> None:
    assert code_points(text).tolist() == list(map(ord, text))
    assert text_of(code_points(text)) == text


def naive_hash(gram: str) -> int:
    value = 0
    for character in gram:
        value = (value + ord(character)) * int(GRAM_MULTIPLIER) % 2**64
        value ^= value >> int(GRAM_SHIFT)
    return value


def naive_measures(text: str) -> dict[str, float]:
    """By sets and counts of strings."""
    kinds = Counter(character_classes()[list(map(ord, text))].tolist())
    total = max(len(text) - kinds[2], 1)
    stripped, seen, repeated = [line.strip() for line in text.split("\n")], set[str](), 0
    for line in filter(None, stripped):
        repeated += len(line) if line in seen else 0
        seen.add(line)
    long = [line for line in map(str.rstrip, text.split("\n")) if len(line) >= 10]
    covered, begun = [False] * len(text), set[str]()
    for first in range(len(text) - 9):
        gram = text[first : first + 10]
        if gram in begun:
            covered[first : first + 10] = [True] * 10
        begun.add(gram)
    top = max(Counter(text[first : first + 4] for first in range(len(text) - 3)).values(), default=0)
    return {
        "few_hanzi": kinds[1] / total,
        "much_punctuation": kinds[0] / total,
        "many_digits": kinds[3] / total,
        "duplicate_lines": repeated / max(len(text), 1),
        "no_sentences": sum(line.endswith(tuple(LINE_ENDS)) for line in long) / len(long) if len(long) >= 5 else 1,
        "repetitive": sum(covered) / max(len(text), 1),
        "one_phrase": top * 4 / len(text) if len(text) >= 100 and top > 1 else 0,
    }


@settings(deadline=None, max_examples=100)
@given(st.one_of(TEXTS, LINES, REPEATING, REPEATING.map(lambda text: text * 9)))
def test_measures(text: str) -> None:
    expected, codes = naive_measures(text), code_points(text)
    assert {reason: measured(text, reason) for reason in expected} == expected
    few, much, many, duplicate, no_sentences, repetitive, one_phrase = expected.values()
    assert character_shares(codes) == (few, much, many)
    assert (duplicate_line_share(text), ended_line_share(text)) == (duplicate, no_sentences)
    assert (repeated_share(codes), top_gram_share(codes)) == (repetitive, one_phrase)
    anything = QualityConfig(min_characters=0, min_hanzi_share=0, max_punctuation_share=1, max_digit_share=1)
    broken = {"duplicate_lines": duplicate > 0.3, "no_sentences": no_sentences < 0.1, "repetitive": repetitive > 0.4}
    broken["one_phrase"] = one_phrase > 0.2
    assert drop_reason(text, anything) == next((reason for reason, is_so in broken.items() if is_so), None)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 12))
def test_hashes_of_runs(text: str, length: int) -> None:
    expected = [naive_hash(text[first : first + length]) for first in range(len(text) - length + 1)]
    assert gram_hashes(code_points(text), length).tolist() == expected


@settings(deadline=None, max_examples=100)
@given(st.one_of(TEXTS, TEXTS.map(lambda text: f"{text}一二三四五六七八九十，ＡＢ百千万亿兆京垓秭穰{text}")))
def test_letters_and_sketches(text: str) -> None:
    letters = canonical_letters(text)
    assert letters == canonical_letters_by_nfkc(STAND_IN.sub("", CANONICAL(text)))
    grams = {naive_hash(letters[first : first + GRAM_LETTERS]) for first in range(len(letters) - GRAM_LETTERS + 1)}
    assert sketch(text).grams.tolist() == sorted(gram for gram in grams if gram < int(KEPT_BELOW))


def test_letters_of_every_character() -> None:
    """One that the table takes for a matter of itself changes nothing around it, composes with nothing."""
    others = "一" * 25
    for first in range(0, 0x20000, 0x20):
        text = "".join(f"{chr(code)}一" for code in range(first, first + 0x20) if not 0xD800 <= code < 0xE000) + others
        assert canonical_letters(text) == canonical_letters_by_nfkc(CANONICAL(text)), hex(first)
    alone = [code for code, letter in enumerate(nfkc_letters()[:0x20000].tolist()) if letter != 0xFFFFFFFF]
    assert len(alone) > 28_000
    assert {ord(character) for character in "，：！Ａ１一あ "} <= set(alone)
