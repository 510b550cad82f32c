"""The loops over characters, compiled. Code points and tables in, numbers out, no state."""

import numpy as np

from cmbert.machine.compiled import compiled
from data_tools.clean.text.characters import BY_PYTHON, DIGIT, ENDS_LINE, HANZI, KIND, NO_LETTER, OTHER, SPACE

GRAM_SHIFT = np.uint64(29)
GRAM_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio of Knuth's multiplicative hashing
REPEATED_GRAM_CHARACTERS = 10
TOP_GRAM_CHARACTERS = 4
ONE_PHRASE_CHARACTERS = 100  # in a shorter text a name said twice is a large share
LONG_LINE_CHARACTERS = 10  # shorter lines are headings and lists
MOST_LINE_FEEDS = 2  # in a row

_LINE_FEED, _CARRIAGE_RETURN, _BLANK = np.uint32(0x0A), np.uint32(0x0D), np.uint32(0x20)
_NO_LETTER, _BY_PYTHON = np.uint32(NO_LETTER), np.uint32(BY_PYTHON)
_ONE, _WORD = np.uint64(1), np.uint64(64)  # a hash of 0 counts as 1: 0 is an empty slot

# An entry of the table of `rewritten`: what a character becomes, and bits that say what is to be done of it.
_CODE, ANYTHING = np.uint32(0x1FFFFF), np.uint32(0xFFFFFFFF)
UNDECODABLE_GOES, CONTROL_GOES = np.uint32(1 << 21), np.uint32(1 << 22)
COMPATIBILITY, NOT_INERT, BLANK, EMAIL_SIGN, URL_SIGN = (np.uint32(1 << bit) for bit in range(23, 28))
_GOES = UNDECODABLE_GOES | CONTROL_GOES


@compiled
def gram_hash(codes: np.ndarray, first: int, length: int) -> np.uint64:
    """A 64-bit hash of the `length` characters from `first` on."""
    found = np.uint64(0)
    for position in range(first, first + length):
        found = (found + np.uint64(codes[position])) * GRAM_MULTIPLIER
        found ^= found >> GRAM_SHIFT
    return found


@compiled
def gram_hashes_of(codes: np.ndarray, length: int) -> np.ndarray:
    """The hashes of all runs of `length` characters."""
    hashes = np.empty(max(len(codes) - length + 1, 0), np.uint64)
    for first in range(len(hashes)):
        hashes[first] = gram_hash(codes, first, length)
    return hashes


@compiled
def rewritten(
    codes: np.ndarray, table: np.ndarray, waits: np.uint32, out: np.ndarray
) -> tuple[int, int, int, np.uint32, bool]:
    """Write what the table makes of each character, then squeezed unless one that `waits` names is there.

    Returns the length, how many characters that stand for none and controls went, what is there, and whether anything
    is other than it was. \\r\\n is one line end.
    """
    length = undecodable = controls = 0
    found, changed, previous = np.uint32(0), False, np.uint32(0)
    for code in codes:
        entry = table[code]
        found |= entry
        if entry & _GOES:
            undecodable += (entry & UNDECODABLE_GOES) != 0
            controls += (entry & CONTROL_GOES) != 0
        elif not (code == _LINE_FEED and previous == _CARRIAGE_RETURN):
            out[length] = entry & _CODE
            changed |= (entry & _CODE) != code
            length += 1
        previous = code
    if not found & waits:
        length, squeezes = squeezed(out, length, table)
        changed |= squeezes
    return length, undecodable, controls, found, changed or length != len(codes)


@compiled
def squeezed(codes: np.ndarray, length: int, table: np.ndarray) -> tuple[int, bool]:
    """Make runs of blanks in the first `length` characters one, runs of line feeds two, no blank at a line's edges.

    In place; returns the new length and whether anything is other than it was.
    """
    end, blank, line_feeds, changed = 0, False, 0, False
    for position in range(length):
        code = codes[position]
        if code == _LINE_FEED:
            line_feeds += 1
        elif table[code] & BLANK:
            blank = True
            changed |= code != _BLANK
        else:
            if end and line_feeds:
                for _ in range(min(line_feeds, MOST_LINE_FEEDS)):
                    codes[end] = _LINE_FEED
                    end += 1
            elif end and blank:
                codes[end] = _BLANK
                end += 1
            codes[end] = code
            end += 1
            blank, line_feeds = False, 0
    return end, changed or end != length


@compiled
def kind_counts(codes: np.ndarray, kinds: np.ndarray) -> tuple[int, int, int, int]:
    """How many are Hanzi, of no class, digits and white space."""
    hanzi = other = digits = spaces = 0
    for code in codes:
        kind = kinds[code] & KIND
        hanzi += kind == HANZI
        other += kind == OTHER
        digits += kind == DIGIT
        spaces += kind == SPACE
    return hanzi, other, digits, spaces


@compiled
def _bits_of(count: int) -> np.uint64:
    """Of the number of slots for a set of `count` hashes: at most half of them are taken."""
    bits = np.uint64(3)
    while (1 << bits) < 2 * count:
        bits += _ONE
    return bits


@compiled
def repeated_characters(codes: np.ndarray) -> int:
    """How many lie in a 10-gram that began earlier, too."""
    grams = len(codes) - REPEATED_GRAM_CHARACTERS + 1
    if grams < 2:
        return 0
    bits = _bits_of(grams)
    slots, mask = np.zeros(1 << bits, np.uint64), (1 << bits) - 1
    covered, last = 0, -REPEATED_GRAM_CHARACTERS
    for first in range(grams):
        key = max(gram_hash(codes, first, REPEATED_GRAM_CHARACTERS), _ONE)
        slot = np.int64(key >> (_WORD - bits))
        while slots[slot] and slots[slot] != key:
            slot = (slot + 1) & mask
        if slots[slot]:
            covered += min(first - last, REPEATED_GRAM_CHARACTERS)
            last = first
        slots[slot] = key
    return covered


@compiled
def top_gram_count(codes: np.ndarray) -> int:
    """How often the commonest 4-gram is there."""
    grams, largest = len(codes) - TOP_GRAM_CHARACTERS + 1, 0
    bits = _bits_of(grams)
    slots, mask = np.zeros(1 << bits, np.uint64), (1 << bits) - 1
    counts = np.zeros(1 << bits, np.int64)
    for first in range(grams):
        key = max(gram_hash(codes, first, TOP_GRAM_CHARACTERS), _ONE)
        slot = np.int64(key >> (_WORD - bits))
        while slots[slot] and slots[slot] != key:
            slot = (slot + 1) & mask
        slots[slot] = key
        counts[slot] += 1
        largest = max(largest, counts[slot])
    return largest


@compiled
def line_counts(codes: np.ndarray, kinds: np.ndarray) -> tuple[int, int, int]:
    """How many characters stand in lines that were there before; how many lines are long, how many of these end."""
    lines = 1
    for code in codes:
        lines += code == _LINE_FEED
    bits = _bits_of(lines)
    slots, mask = np.zeros(1 << bits, np.uint64), (1 << bits) - 1
    starts, sizes = np.empty(1 << bits, np.int64), np.empty(1 << bits, np.int64)
    repeated = long = ended = start = 0
    for position in range(len(codes) + 1):
        if position < len(codes) and codes[position] != _LINE_FEED:
            continue
        first, end, start = start, position, position + 1
        while end > first and kinds[codes[end - 1]] & KIND == SPACE:
            end -= 1
        if end - first >= LONG_LINE_CHARACTERS:
            long += 1
            ended += (kinds[codes[end - 1]] & ENDS_LINE) != 0
        while first < end and kinds[codes[first]] & KIND == SPACE:
            first += 1
        if first == end:
            continue
        key = max(gram_hash(codes, first, end - first), _ONE)
        slot = np.int64(key >> (_WORD - bits))
        while slots[slot] and not (slots[slot] == key and _are_equal(codes, first, end, starts[slot], sizes[slot])):
            slot = (slot + 1) & mask
        if slots[slot]:
            repeated += end - first
        slots[slot], starts[slot], sizes[slot] = key, first, end - first
    return repeated, long, ended


@compiled
def _are_equal(codes: np.ndarray, first: int, end: int, other: int, size: int) -> bool:
    if end - first != size:
        return False
    equal = 0
    for offset in range(size):
        equal += codes[first + offset] == codes[other + offset]
    return equal == size


@compiled
def measures(codes: np.ndarray, kinds: np.ndarray) -> tuple[int, int, int, int, int, int, int, int, int]:
    """What kind_counts, line_counts, repeated_characters and top_gram_count say, in this order, in one call."""
    hanzi, other, digits, spaces = kind_counts(codes, kinds)
    repeated, long, ended = line_counts(codes, kinds)
    top = top_gram_count(codes) if len(codes) >= ONE_PHRASE_CHARACTERS else 0
    return hanzi, other, digits, spaces, repeated, long, ended, repeated_characters(codes), top


@compiled
def letters_of(codes: np.ndarray, table: np.ndarray, above: np.uint32, out: np.ndarray) -> int:
    """Write what a table of letters makes of each character, if it lies above a number; return how many that are.

    -1: a character is there of which only Python can say what it becomes.
    """
    count = 0
    for code in codes:
        letter = table[code] if code < len(table) else _NO_LETTER
        if letter == _BY_PYTHON:
            return -1
        out[count] = letter  # written over by the next one if it does not count
        count += int(letter > above)
    return count


@compiled
def small_gram_hashes(codes: np.ndarray, length: int, bound: np.uint64) -> np.ndarray:
    """The hashes below a bound of all runs of `length` characters."""
    hashes, count = np.empty(max(len(codes) - length + 1, 0), np.uint64), 0
    for first in range(len(hashes)):
        key = gram_hash(codes, first, length)
        hashes[count] = key
        count += key < bound
    return hashes[:count]
