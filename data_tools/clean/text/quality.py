"""Whether a Chinese text is worth training on: one measure for each reason to drop it, in characters, not words.

The rules are those of Gopher (arXiv 2112.11446, appendix A) and C4 where they carry over to text without spaces; the
limits are ours.
"""

import numpy as np

from data_tools.clean.config import QualityConfig
from data_tools.clean.text.characters import character_kinds, code_points
from data_tools.clean.text.decodability import mojibake_share, undecodable_share
from data_tools.clean.text.kernels import (
    ONE_PHRASE_CHARACTERS,
    TOP_GRAM_CHARACTERS,
    gram_hashes_of,
    kind_counts,
    line_counts,
    measures,
    repeated_characters,
    top_gram_count,
)

DAMAGES = {"undecodable": undecodable_share, "mojibake": mojibake_share}  # judged before a text is normalised
FEWEST_LINES = 5  # with fewer long lines their ends say little


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


BY_LENGTH = ("too_short", "too_long")
JUDGED = tuple(
    (reason, key, key.startswith("min_")) for reason, key in LIMITS.items() if reason not in {*DAMAGES, *BY_LENGTH}
)


def drop_reason(text: str, config: QualityConfig) -> str | None:
    """Return why `text` is to be dropped, or None; the first rule that it breaks, cheap ones first."""
    if len(text) < config.min_characters:
        return "too_short"
    if len(text) > config.max_characters:
        return "too_long"
    for (reason, key, is_least), value in zip(JUDGED, _measures(text), strict=True):
        limit: float = getattr(config, key)
        if value < limit if is_least else value > limit:
            return reason
    return None


def measured(text: str, reason: str) -> float:
    """Return what the rule of `reason` measures: characters, or a share."""
    if reason in DAMAGES:
        return DAMAGES[reason](text)
    if reason in BY_LENGTH:
        return len(text)
    return next(value for (name, _, _), value in zip(JUDGED, _measures(text), strict=True) if name == reason)


def _measures(text: str) -> tuple[float, ...]:
    """Return what the rules of JUDGED measure."""
    hanzi, other, digits, spaces, in_lines, long, ended, repeated, top = measures(code_points(text), character_kinds())
    total = max(len(text), 1)
    return (
        *_shares(len(text), hanzi, other, digits, spaces),
        in_lines / total,
        _ended_share(long, ended),
        repeated / total,
        _top_share(top, len(text)),
    )


def _shares(total: int, hanzi: int, other: int, digits: int, spaces: int) -> tuple[float, float, float]:
    total = max(total - spaces, 1)
    return hanzi / total, other / total, digits / total


def _ended_share(long: int, ended: int) -> float:
    return ended / long if long >= FEWEST_LINES else 1.0


def _top_share(top: int, total: int) -> float:
    return top * TOP_GRAM_CHARACTERS / total if top > 1 else 0.0


def character_shares(codes: np.ndarray) -> tuple[float, float, float]:
    """Return the shares of Hanzi, punctuation and digits among the characters that are not white space."""
    return _shares(len(codes), *kind_counts(codes, character_kinds()))


def gram_hashes(codes: np.ndarray, length: int) -> np.ndarray:
    """Return a 64-bit hash of every run of `length` characters, shape (characters - length + 1,), uint64."""
    hashes: np.ndarray = gram_hashes_of(codes, length)
    return hashes


def repeated_share(codes: np.ndarray) -> float:
    """Return the share of the characters that lie in a 10-gram which began earlier in the text, too."""
    return float(repeated_characters(codes) / max(len(codes), 1))


def top_gram_share(codes: np.ndarray) -> float:
    """Return the share of the characters that the commonest 4-gram makes up; 0 for short texts."""
    return _top_share(top_gram_count(codes), len(codes)) if len(codes) >= ONE_PHRASE_CHARACTERS else 0.0


def duplicate_line_share(text: str) -> float:
    """Return the share of the characters in lines that stood in the text before."""
    repeated, _, _ = line_counts(code_points(text), character_kinds())
    return float(repeated / max(len(text), 1))


def ended_line_share(text: str) -> float:
    """Return the share of the long lines that end in punctuation; 1 when there are too few to judge."""
    _, long, ended = line_counts(code_points(text), character_kinds())
    return _ended_share(long, ended)
