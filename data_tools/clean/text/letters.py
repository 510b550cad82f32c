"""Which texts are held out, and which repeat one that is: by letters that no normalisation of a corpus changes."""

import functools
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import normalizers

from data_tools.clean.config import NormalizeConfig
from data_tools.clean.text.characters import (
    BY_PYTHON,
    CODE_POINT,
    FIRST_WITHOUT_CLASS,
    NO_LETTER,
    code_points,
    text_of,
)
from data_tools.clean.text.kernels import letters_of, small_gram_hashes
from data_tools.clean.text.normalization import normalizer
from data_tools.encoding.encoders import NFC_INERT
from data_tools.input.document import Purpose, text_hash

NFKC = normalizers.NFKC()  # not Python's, which takes quadratic time for thousands of marks on one letter
NO_LETTER_RUN, ASCII, LAST_ASCII = re.compile(r"[\W_]+"), re.compile(r"[\x00-\x7f]+"), 0x7F
CANONICAL = normalizer(NormalizeConfig(urls="remove", emails="remove"))
STAND_IN = re.compile("<(?:url|email)>")  # what a corpus may have written for an address
ENOUGH_LETTERS = 20  # a text of fewer beyond ASCII is told by all its letters
GRAM_LETTERS = 8  # about five words, as in the search for near duplicates
KEPT_GRAMS = 8  # one in so many grams is compared, the same ones in every text
KEPT_BELOW = np.uint64(2**64 // KEPT_GRAMS)
NEAR_SHARE = 0.5  # a text is near a held-out one if they share half of the shorter one's grams
FEWEST_GRAMS = 3  # but no fewer than this, some 24 letters
MOST_OWNERS = 100  # a gram of more held-out texts is a phrase of the trade, and tells none of them


def canonical_letters(text: str) -> str:
    """Return the letters of a text beyond ASCII, Hanzi above all, outside of markup; all letters if they are few.

    What `NormalizeConfig` lets a corpus do to addresses, widths, tags and spaces changes only the rest.
    """
    text = CANONICAL(text)
    text = STAND_IN.sub("", text) if "<" in text else text
    codes = code_points(text)
    out = np.empty(len(codes), CODE_POINT)
    count = letters_of(codes, nfkc_letters(), LAST_ASCII, out)
    return text_of(out[:count]) if count >= ENOUGH_LETTERS else canonical_letters_by_nfkc(text)


def canonical_letters_by_nfkc(text: str) -> str:
    """Return the same of a text without addresses and markup, whatever characters it has."""
    letters = NO_LETTER_RUN.sub("", NFKC.normalize_str(text))
    beyond = ASCII.sub("", letters)
    return beyond if len(beyond) >= ENOUGH_LETTERS else letters.lower()


@functools.cache
def nfkc_letters() -> np.ndarray:
    """Return which letter or digit NFKC makes of each code point, (1114112,) uint32; NO_LETTER: none.

    It makes of a text what it makes of each character where all of these are inert in NFC; else BY_PYTHON, as for
    what becomes several letters.
    """
    table = np.full(sys.maxunicode + 1, BY_PYTHON, dtype=np.uint32)
    for character in filter(NFC_INERT.fullmatch, map(chr, range(FIRST_WITHOUT_CLASS))):
        becomes = NFKC.normalize_str(character)
        letters = NO_LETTER_RUN.sub("", becomes)
        if NFC_INERT.fullmatch(becomes) and len(letters) <= 1:
            table[ord(character)] = ord(letters) if letters else NO_LETTER
    return table


def heldout_key(letters: str) -> int:
    """Return 64 bits of a text's canonical letters: a share of all texts is held out if they lie below that of 2^64."""
    return text_hash(letters, Purpose.CLEAN_HELD_OUT)


class Sketch(NamedTuple):
    """A text as it is compared with others."""

    key: int
    grams: np.ndarray  # (grams,) uint64, hashes, each once


def sketch(text: str) -> Sketch:
    """Return key and grams of a text."""
    letters = canonical_letters(text)
    grams = small_gram_hashes(code_points(letters), GRAM_LETTERS, KEPT_BELOW)
    grams.sort()
    is_first = np.ones(len(grams), dtype=bool)
    np.not_equal(grams[1:], grams[:-1], out=is_first[1:])
    return Sketch(heldout_key(letters), grams[is_first])


class HeldOutTexts:
    """All held-out texts, to look others up in: about 12 bytes for eight letters, mapped and not read."""

    FILES = ("keys", "sizes", "grams", "owners")

    def __init__(self, folder: Path):
        self.keys, self.sizes, self.grams, self.owners = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in self.FILES
        )

    @classmethod
    def write(cls, folder: Path, sketches: Iterable[Sketch]) -> None:
        """Write what an instance reads."""
        found = list(sketches)
        sizes = np.array([len(one.grams) for one in found], np.int64)
        grams = np.concatenate([np.zeros(0, np.uint64), *(one.grams for one in found)])
        owners = np.repeat(np.arange(len(found), dtype=np.uint32), sizes)
        order = np.argsort(grams, kind="stable")
        grams, owners = grams[order], owners[order]
        _, which, counts = np.unique(grams, return_inverse=True, return_counts=True)
        telling = counts[which] <= MOST_OWNERS
        keys = np.unique(np.array([one.key for one in found], np.uint64))
        arrays: tuple[np.ndarray, ...] = (keys, sizes, grams[telling], owners[telling])
        for name, array in zip(cls.FILES, arrays, strict=True):
            np.save(folder / f"{name}.npy", array)

    def relation(self, text: str) -> str | None:
        """Return "held_out" if a text equals a held-out one in its letters, "near_held_out" if it nearly does."""
        key, grams = sketch(text)
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        if place < len(self.keys) and self.keys[place] == key:
            return "held_out"
        firsts = np.searchsorted(self.grams, grams)
        in_both = self.grams[np.minimum(firsts, len(self.grams) - 1)] == grams if len(self.grams) else grams[:0]
        if not in_both.any():
            return None
        lasts = np.searchsorted(self.grams, grams[in_both], "right")
        hits = [self.owners[first:last] for first, last in zip(firsts[in_both], lasts, strict=True)]
        owners, counts = np.unique(np.concatenate(hits), return_counts=True)
        needed = np.maximum(NEAR_SHARE * np.minimum(self.sizes[owners], len(grams)), FEWEST_GRAMS)
        return "near_held_out" if (counts >= needed).any() else None
