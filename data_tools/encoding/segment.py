"""Word boundaries, exactly jieba's (accurate mode, HMM on): by rjieba with two corrections, or by jieba itself.

rjieba (the Rust port, some 20 times as fast) differs from jieba in two ways only; both are undone here, and a test
compares the two on the whole sample:
- it keeps an alphanumeric run with inner `-`, `.` or `_` whole where jieba's finalseg splits it;
- it takes Hanzi outside U+4E00-U+9FD5 into words and word statistics where jieba makes each a word of its own.
"""

import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from cmbert.errors import ConfigError
from cmbert.files.operations import hash_file

SEGMENTERS = ("auto", "jieba", "rjieba")
ALPHANUMERIC = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)", re.ASCII)  # jieba 0.42.1, finalseg.re_skip
HELD_TOGETHER = re.compile(r"[a-zA-Z0-9][-._]")  # what rjieba may have kept whole
RARE_HANZI = re.compile(  # letters to rjieba's block rule, not to jieba's
    "([\u3400-\u4dbf\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)

logger = logging.getLogger(__name__)


class Segmenter(Protocol):
    """Cuts text into words."""

    def cut(self, text: str) -> list[str]:
        """Return the words of `text`, in order; joined they are `text` again."""

    def describe(self) -> dict[str, Any]:
        """Return name, version and dictionary hash, for the manifest."""


def segmenter(name: str = "auto") -> Segmenter:
    """Return the segmenter `name`. auto: rjieba where it is installed, else jieba. Raises ConfigError."""
    if name == "auto":
        name = "rjieba" if importlib.util.find_spec("rjieba") else "jieba"
        if name == "jieba":
            logger.info(
                "rjieba is not installed: cutting with jieba, about 20 times slower (pip install 'cmbert[data]')"
            )
    if name not in SEGMENTERS:
        raise ConfigError(f"segmenter {name!r}: choose one of {', '.join(SEGMENTERS)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--segmenter {name}: not installed; pip install 'cmbert[data]', or --segmenter auto")
    return RustJieba() if name == "rjieba" else Jieba()


class Jieba:
    """jieba itself: the definition of a word here, and the fallback."""

    def __init__(self) -> None:
        import jieba
        import jieba.finalseg

        jieba.finalseg.viterbi = viterbi
        jieba.setLogLevel(logging.WARNING)
        self._tokenizer = jieba.Tokenizer()
        # Loaded here and not by jieba: it would unmarshal a cache that anyone may have put into the temporary folder.
        self._tokenizer.FREQ, self._tokenizer.total = jieba.Tokenizer.gen_pfdict(self._tokenizer.get_dict_file())
        self._tokenizer.initialized = True

    def cut(self, text: str) -> list[str]:
        """Return the words of `text`."""
        return self._tokenizer.lcut(text)

    def describe(self) -> dict[str, Any]:
        """Return name, version and dictionary hash."""
        return _describe("jieba")


def viterbi(
    text: str,
    states: str,
    start: Mapping[str, float],
    transitions: Mapping[str, Mapping[str, float]],
    emissions: Mapping[str, Mapping[str, float]],
) -> tuple[float, list[str]]:
    """Return what jieba.finalseg.viterbi (0.42.1) does, in linear time: it copies the path so far at every character.

    So 300,000 Hanzi in a row that the dictionary lacks took minutes. Likelihoods are summed and ties resolved as there.
    """
    before = {"B": "ES", "M": "MB", "S": "SE", "E": "BM"}
    unlikely = -3.14e100
    scores = {state: start[state] + emissions[state].get(text[0], unlikely) for state in states}
    steps: list[dict[str, str]] = []  # for each character but the first: the best state before each
    for character in text[1:]:
        best = {}
        for state in states:
            emission = emissions[state].get(character, unlikely)
            best[state] = max(
                (scores[last] + transitions[last].get(state, unlikely) + emission, last) for last in before[state]
            )
        scores = {state: score for state, (score, _) in best.items()}
        steps.append({state: last for state, (_, last) in best.items()})
    score, state = max((scores[state], state) for state in "ES")
    path = [state]
    for step in reversed(steps):
        path.append(state := step[state])
    return score, path[::-1]


class RustJieba:
    """rjieba, corrected to jieba's boundaries."""

    def __init__(self) -> None:
        import rjieba

        self._cut = rjieba.Jieba().cut

    def cut(self, text: str) -> list[str]:
        """Return the words of `text`."""
        if RARE_HANZI.search(text):
            # jieba ends a block at such a character, so the parts between them are cut on their own.
            parts = RARE_HANZI.split(text)
            parts[::2] = [self._cut_common(part) for part in parts[::2]]
            parts[1::2] = [[rare] for rare in parts[1::2]]
            return list(chain.from_iterable(parts))
        return self._cut_common(text)

    def _cut_common(self, text: str) -> list[str]:
        words = self._cut(text)
        if not HELD_TOGETHER.search(text):
            return words
        exact: list[str] = []
        for word in words:
            if len(word) > 2 and word.isascii() and HELD_TOGETHER.search(word):
                exact += filter(None, ALPHANUMERIC.split(word))
            else:
                exact.append(word)
        return exact

    def describe(self) -> dict[str, Any]:
        """Return name, version and the hash of jieba's dictionary, whose boundaries these are."""
        return _describe("rjieba")


def _describe(name: str) -> dict[str, Any]:
    jieba = importlib.util.find_spec("jieba")
    assert jieba is not None
    assert jieba.origin is not None
    dictionary = Path(jieba.origin).with_name("dict.txt")
    return {"name": name, "version": importlib.metadata.version(name), "dictionary_hash": hash_file(dictionary)}
