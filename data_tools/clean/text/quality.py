"""Whether a Chinese text is worth training on: one measure for each reason to drop it, in characters, not words.

The rules are those of Gopher (arXiv 2112.11446, appendix A) and C4 where they carry over to text without spaces; the
limits are ours.
"""

from collections.abc import Callable, Iterator

import numpy as np

from data_tools.clean.config import QualityConfig
from data_tools.clean.text.characters import DIGIT, HANZI, LETTER, OTHER, SPACE, character_classes, code_points
from data_tools.clean.text.decodability import mojibake_share, undecodable_share
from data_tools.clean.text.kernels import GRAM_MULTIPLIER, GRAM_SHIFT

DAMAGES = {"undecodable": undecodable_share, "mojibake": mojibake_share}  # judged before a text is normalised
REPEATED_GRAM_CHARACTERS = 10
TOP_GRAM_CHARACTERS = 4
ONE_PHRASE_CHARACTERS = 100  # in a shorter text a name said twice is a large share
LONG_LINE_CHARACTERS = 10  # shorter lines are headings and lists
FEWEST_LINES = 5  # with fewer long lines their ends say little
LINE_ENDS = tuple("。！？；…：，、”』」）》.!?;:,)\"'")

LIMITS = {  # reason: the key of its limit in QualityConfig, of which min_ is undercut and max_ exceeded
    "undecodable": "max_undecodable_share",
    "mojibake": "max_mojibake_share",
    "too_short": "min_characters",
    "too_long": "max_characters",
    "few_hanzi": "min_hanzi_share",
    "much_punctuation": "max_punctuation_share",
    "many_digits": "max_digit_share",
    "duplicate_lines": "max_duplicate_line_share",
    "no_sentences": "min_ended_line_share",
    "repetitive": "max_repeated_share",
    "one_phrase": "max_top_gram_share",
}


def drop_reason(text: str, config: QualityConfig) -> str | None:
    """Return why `text` is to be dropped, or None; the first rule that it breaks, cheap ones first."""
    return next((reason for reason, measure in _measures(text) if _breaks(measure(), LIMITS[reason], config)), None)


def _breaks(value: float, key: str, config: QualityConfig) -> bool:
    limit: float = getattr(config, key)
    return value < limit if key.startswith("min_") else value > limit


def measured(text: str, reason: str) -> float:
    """Return what the rule of `reason` measures: characters, or a share."""
    if reason in DAMAGES:
        return DAMAGES[reason](text)
    return next(measure() for name, measure in _measures(text) if name == reason)


def _measures(text: str) -> Iterator[tuple[str, Callable[[], float]]]:
    yield "too_short", lambda: len(text)
    yield "too_long", lambda: len(text)
    codes = code_points(text)
    hanzi, punctuation, digits = character_shares(codes)
    yield "few_hanzi", lambda: hanzi
    yield "much_punctuation", lambda: punctuation
    yield "many_digits", lambda: digits
    yield "duplicate_lines", lambda: duplicate_line_share(text)
    yield "no_sentences", lambda: ended_line_share(text)
    yield "repetitive", lambda: repeated_share(codes)
    yield "one_phrase", lambda: top_gram_share(codes)


def character_shares(codes: np.ndarray) -> tuple[float, float, float]:
    """Return the shares of Hanzi, punctuation and digits among the characters that are not white space."""
    counts = np.bincount(character_classes()[codes], minlength=LETTER + 1).tolist()
    total = max(len(codes) - counts[SPACE], 1)
    return counts[HANZI] / total, counts[OTHER] / total, counts[DIGIT] / total


def gram_hashes(codes: np.ndarray, length: int) -> np.ndarray:
    """Return a 64-bit hash of every run of `length` characters, shape (characters - length + 1,), uint64."""
    hashes = np.zeros(max(len(codes) - length + 1, 0), dtype=np.uint64)
    codes, upper = codes.astype(np.uint64), np.empty_like(hashes)
    for offset in range(length):
        hashes += codes[offset : offset + len(hashes)]
        hashes *= GRAM_MULTIPLIER
        np.right_shift(hashes, GRAM_SHIFT, out=upper)
        hashes ^= upper
    return hashes


def repeated_share(codes: np.ndarray) -> float:
    """Return the share of the characters that lie in a 10-gram which began earlier in the text, too."""
    hashes = gram_hashes(codes, REPEATED_GRAM_CHARACTERS)
    if not _repeats(hashes):
        return 0.0
    _, first = np.unique(hashes, return_index=True)
    repeats = np.ones(len(hashes), dtype=bool)
    repeats[first] = False
    begun = np.cumsum(np.concatenate([[0], repeats, np.zeros(REPEATED_GRAM_CHARACTERS - 1, np.int64)]))
    covered = begun[1:] > begun[np.maximum(np.arange(len(codes)) + 1 - REPEATED_GRAM_CHARACTERS, 0)]
    return float(np.count_nonzero(covered)) / len(codes)


def _repeats(hashes: np.ndarray) -> int:
    """Return how many of the hashes were there before."""
    ordered = np.sort(hashes)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def top_gram_share(codes: np.ndarray) -> float:
    """Return the share of the characters that the commonest 4-gram makes up; 0 for short texts."""
    if len(codes) < ONE_PHRASE_CHARACTERS:
        return 0.0
    ordered = np.sort(gram_hashes(codes, TOP_GRAM_CHARACTERS))
    bounds = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    largest = int(np.diff(bounds).max())
    return largest * TOP_GRAM_CHARACTERS / len(codes) if largest > 1 else 0.0


def duplicate_line_share(text: str) -> float:
    """Return the share of the characters in lines that stood in the text before."""
    seen: set[str] = set()
    repeated = 0
    for line in filter(None, map(str.strip, text.split("\n"))):
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / max(len(text), 1)


def ended_line_share(text: str) -> float:
    """Return the share of the long lines that end in punctuation; 1 when there are too few to judge."""
    lines = [line for line in map(str.rstrip, text.split("\n")) if len(line) >= LONG_LINE_CHARACTERS]
    if len(lines) < FEWEST_LINES:
        return 1.0
    return sum(line.endswith(LINE_ENDS) for line in lines) / len(lines)
