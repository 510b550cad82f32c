"""Which texts hold an evaluation text or a large part of it: by the runs of 13 units, Hanzi or words, in both.

Sources: runs of 13, GPT-3 (arXiv 2005.14165, appendix C) and the Pile (2101.00027), there of words; a run alone is too
little, so that what both have in common must also be a share of the shorter text, as in Qwen2 (2407.10671, 13 tokens
and 0.6). Ours: the units, since 13 Latin letters are no more than "international" and a Hanzi stands alone; the share
counted in runs; which runs are too common to tell anything (GPT-3 counts them in the training text, a second pass).
"""

import functools
import json
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmbert.machine.compiled import compiled
from data_tools.clean.text.characters import HANZI_RANGES, code_points
from data_tools.clean.text.compatibility import FOLDED
from data_tools.clean.text.kernels import GRAM_MULTIPLIER

RUN_UNITS = 13
MOST_OWNERS = 100  # a run in more evaluation texts of one call is a phrase of its field or of the test, and tells none
BOUNDARY, NOTHING = np.uint32(0), np.uint32(1)  # between two words; not there (marks, zero-width characters)
IN_WORD = np.uint32(1 << 31)  # of a letter: one of a word, all of which is one unit
FIRST_WITHOUT_LETTERS = 0x40000  # no code point from here on is one
ALONE = (*HANZI_RANGES, (0x3005, 0x3006), (0x3040, 0x312F), (0x31A0, 0x31FF), (0xAC00, 0xD7A3))  # Hanzi, kana, Hangul
SHIFT, LAST_SHIFT = np.uint64(29), np.uint64(32)
BITS_PER_RUN, RUNS_PER_BUCKET = 16, 4  # of the index: 2 and 1 bytes a run beside its 12
FILES = tuple(f"{name}.npy" for name in ("known", "owners", "bits", "starts", "sizes", "sets"))
NAMES_FILE = "names.json"


@functools.cache
def letter_table() -> np.ndarray:
    """Return what each code point counts as, shape (1114112,), uint32: BOUNDARY, NOTHING, or a letter or digit.

    Letters are small, without marks and in their usual form (NFKD, radicals as Hanzi); those of words have IN_WORD.
    """
    table, alone = np.zeros(sys.maxunicode + 1, np.uint32), np.zeros(sys.maxunicode + 1, bool)
    for first, last in ALONE:
        alone[first : last + 1] = True
    for code, character in enumerate(map(chr, range(FIRST_WITHOUT_LETTERS))):
        plain = unicodedata.normalize("NFKD", FOLDED["folded_radical"].get(character, character)).lower()
        letters = [part for part in plain if part.isalnum()]
        if len(letters) > 1 and character.isalnum():  # Hangul, ½: as they are
            letters = [character]
        if len(letters) == 1:
            table[code] = ord(letters[0]) | (0 if alone[ord(letters[0])] else int(IN_WORD))
        elif not letters and (unicodedata.category(character)[0] == "M" or unicodedata.category(character) == "Cf"):
            table[code] = NOTHING
    return table


@compiled
def _runs(codes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hashes (uint64) of all runs, and the places where each begins and ends in codes: three of (runs,)."""
    units, firsts, lasts = (
        np.empty(len(codes), np.uint64),
        np.empty(len(codes), np.int64),
        np.empty(len(codes), np.int64),
    )
    count, in_word = 0, False
    for place in range(len(codes)):
        letter = table[codes[place]]
        if letter == NOTHING:
            continue
        if letter == BOUNDARY:
            in_word = False
            continue
        if not (in_word and letter >= IN_WORD):
            units[count], firsts[count] = np.uint64(0), place
            count += 1
        in_word = letter >= IN_WORD
        unit = (units[count - 1] + np.uint64(letter)) * GRAM_MULTIPLIER
        units[count - 1], lasts[count - 1] = unit ^ (unit >> SHIFT), place + 1
    num_runs = max(count - RUN_UNITS + 1, 0)
    hashes, leaving, rolled = np.empty(num_runs, np.uint64), np.uint64(1), np.uint64(0)
    for _ in range(RUN_UNITS):
        leaving *= GRAM_MULTIPLIER
    for last in range(count):
        rolled = rolled * GRAM_MULTIPLIER + units[last]
        if last >= RUN_UNITS:
            rolled -= units[last - RUN_UNITS] * leaving
        if last >= RUN_UNITS - 1:
            mixed = (rolled ^ (rolled >> SHIFT)) * GRAM_MULTIPLIER
            hashes[last - RUN_UNITS + 1] = mixed ^ (mixed >> LAST_SHIFT)
    return hashes, firsts[:num_runs], lasts[count - num_runs : count]


@compiled
def _set_bits(bits: np.ndarray, hashes: np.ndarray) -> None:
    mask = np.uint64(8 * len(bits) - 1)
    for place in range(len(hashes)):
        bit = hashes[place] & mask
        bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))


@compiled
def _find(
    hashes: np.ndarray, bits: np.ndarray, starts: np.ndarray, bucket_shift: np.uint64, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `hashes` are known, and where in `known`, which is sorted, each first stands: two of (found,).

    bits: whether some known hash ends in these bits. starts: where in `known` those that begin with these bits lie.
    """
    found, places, count = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64), 0
    mask = np.uint64(8 * len(bits) - 1)
    for place in range(len(hashes)):
        hashed = hashes[place]
        bit = hashed & mask
        if not (bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & np.uint8(1):
            continue
        bucket = np.int64(hashed >> bucket_shift)
        at, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
        while at < end and known[at] < hashed:
            at += 1
        if at < end and known[at] == hashed:
            found[count], places[count] = place, at
            count += 1
    return found[:count], places[:count]


def runs_of(text: str) -> np.ndarray:
    """Return a hash of each run of 13 units of a normalised text, each once, shape (runs,), uint64."""
    return np.unique(_runs(code_points(text), letter_table())[0])


def index_of(texts: Iterable[tuple[int, np.ndarray]], num_sets: int) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return the arrays that EvaluationTexts reads, by file, and how many different texts each set has.

    texts: the number of a set, and runs as `runs_of` gives them. Takes about 45 bytes of memory a run.
    """
    runs, sets, seen = [np.zeros(0, np.uint64)], list[int](), set[tuple[int, int]]()
    for number, own in texts:
        key = (number, hash(own.tobytes()))
        if len(own) and key not in seen:
            seen.add(key)
            runs.append(own)
            sets.append(number)
    owners = np.repeat(np.arange(len(sets), dtype=np.uint32), [len(own) for own in runs[1:]])
    known = np.concatenate(runs)
    del runs, seen
    order = np.argsort(known, kind="stable")
    known, owners = known[order], owners[order]
    del order
    owned = np.diff(np.flatnonzero(np.diff(known, prepend=~known[:1], append=~known[-1:])))
    telling = np.repeat(owned <= MOST_OWNERS, owned)
    known, owners = known[telling], owners[telling]
    bits = np.zeros(BITS_PER_RUN // 8 * _power_of_two(len(known)), np.uint8)
    _set_bits(bits, known)
    buckets = _power_of_two(len(known) // RUNS_PER_BUCKET)
    edges = np.arange(1, buckets, dtype=np.uint64) << _bucket_shift(buckets)
    starts = np.concatenate([[0], np.searchsorted(known, edges), [len(known)]]).astype(np.uint32)
    sizes = np.bincount(owners, minlength=len(sets)).astype(np.uint32)
    arrays = (known, owners, bits, starts, sizes, np.array(sets, np.uint16))
    counts = np.bincount(np.array(sets, np.int64), minlength=num_sets).tolist()
    return dict(zip(FILES, arrays, strict=True)), counts


class Contamination(NamedTuple):
    """What a text has in common with an evaluation text."""

    sets: tuple[str, ...]
    """Names of the evaluation sets that have a text of which it holds enough."""
    run: str
    """The longest run that it shares with the text of which it holds the most."""
    share: float
    """How many of the runs of that text, or of its own if these are fewer, are in both."""


class EvaluationTexts:
    """All evaluation texts, to look others up in: 16 to 18 bytes a run, mapped and not read."""

    def __init__(self, folder: Path):
        self.known, self.owners, self.bits, self.starts, self.sizes, self.sets = (
            np.asarray(np.load(folder / file, mmap_mode="r")) for file in FILES
        )
        self.names: list[str] = json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))

    def find(self, text: str, min_share: float) -> Contamination | None:
        """Return what a normalised text has in common with evaluation texts, None if it is too little.

        Enough is one run, and `min_share` of those of the evaluation text, or of `text` if these are fewer.
        """
        hashes, firsts, lasts = _runs(code_points(text), letter_table())
        found, places = _find(hashes, self.bits, self.starts, _bucket_shift(len(self.starts) - 1), self.known)
        if not len(found):
            return None
        different = np.unique(places)
        ends = np.searchsorted(self.known, self.known[different], side="right")
        own = np.repeat(np.arange(len(different)), ends - different)  # for every owner of a run, which run
        owners = self.owners[np.arange(len(own)) + (ends - np.cumsum(ends - different))[own]]
        texts, counts = np.unique(owners, return_counts=True)
        shares = counts / np.minimum(self.sizes[texts], len(np.unique(hashes)))
        enough = shares >= min_share
        if not enough.any():
            return None
        most = int(np.argmax(np.where(enough, counts, 0)))
        first, last = _longest_stretch(found[np.isin(places, different[own[owners == texts[most]]])])
        names = tuple(self.names[number] for number in np.unique(self.sets[texts[enough]]))
        return Contamination(names, text[firsts[first] : lasts[last]], float(shares[most]))


def _longest_stretch(numbers: np.ndarray) -> tuple[int, int]:
    """Return the first and the last of the longest stretch of numbers, rising, that follow each other."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    stretch = max(np.split(numbers, breaks), key=len)
    return int(stretch[0]), int(stretch[-1])


def _power_of_two(least: int) -> int:
    """Return the smallest power of two from `least` on, 2 or more."""
    return 1 << max(least - 1, 1).bit_length()


def _bucket_shift(buckets: int) -> np.uint64:
    """Return how far a hash is shifted to be the number of its bucket."""
    return np.uint64(65 - buckets.bit_length())
