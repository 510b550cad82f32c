"""CMRC 2018's exact match and F1, in characters and words (arXiv 1810.07366 and its official script)."""

import re
from collections.abc import Sequence

UNITS = re.compile(r"[\u4e00-\u9fa5]|\d+(?:[.,]\d+)*|[^\W\d\u4e00-\u9fa5]+|[^\w\s]")
"""A Hanzi, a number, a word of letters or a sign; the official script takes nltk's words between the Hanzi."""
PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What the official script leaves out before it compares."""


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Return 1 if `answer` is one of `truths`, case and punctuation aside."""
    return float(_bare(answer) in [_bare(truth) for truth in truths])


def span_f1(answer: str, truths: Sequence[str]) -> float:
    """Return the best F1 over `truths`: of the longest common run of Hanzi and words, as CMRC 2018 defines it."""
    return max(_f1(_units(answer), _units(truth)) for truth in truths)


def _bare(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in PUNCTUATION)


def _units(text: str) -> list[str]:
    return UNITS.findall(_bare(text))


def _f1(found: list[str], truth: list[str]) -> float:
    common = _longest_common_run(found, truth)
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(truth)
    return 2 * precision * recall / (precision + recall)


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    longest, before = 0, [0] * (len(second) + 1)
    for one in first:
        row = [0] * (len(second) + 1)
        for place, other in enumerate(second):
            if one == other:
                row[place + 1] = before[place] + 1
                longest = max(longest, row[place + 1])
        before = row
    return longest
