"""MinHash of a text over runs of characters: one key for each band, which near duplicates share at least one of.

Hashes and their parameters are datatrove's (pipeline/dedup/minhash.py), computed in one pass over the text.
"""

import functools
from hashlib import blake2b

import numpy as np

from cmbert.machine.compiled import compiled
from data_tools.clean.config import DuplicatesConfig
from data_tools.clean.text.characters import BY_PYTHON, FIRST_WITHOUT_CLASS, NO_LETTER, code_points
from data_tools.clean.text.kernels import GRAM_MULTIPLIER, gram_hash, letters_of
from data_tools.clean.text.quality import gram_hashes

SEED = 1  # datatrove's, of the factors and summands
MERSENNE = (1 << 61) - 1  # the prime that hashes are taken modulo
SHINGLE_BLOCK = 256  # shingles that are hashed at a time: 2 kB, which stay in a core's first cache
SHINGLE_LANES = 16  # that a compiled loop takes at once, and the rest one by one

_MERSENNE, _MERSENNE_BITS = np.uint64(MERSENNE), np.uint64(61)
_SIGNED_MERSENNE = np.int64(MERSENNE)
# MurmurHash3's finalizer (Appleby); every bit of a number changes half of the bits.
_MIX_SHIFT, _MIX_0, _MIX_1 = np.uint64(33), np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


class Signer:
    """Texts -> the keys of their bands.

    Two texts share a band's key if all its minimum hashes are equal (else by chance, once in 2^64); a text without a
    shingle shares them with equal texts only.
    """

    def __init__(self, config: DuplicatesConfig):
        random, count = np.random.RandomState(SEED), config.num_buckets * config.hashes_per_bucket
        self._factors = random.randint(1, MERSENNE, dtype=np.uint64, size=(1, count))[0]
        self._summands = random.randint(0, MERSENNE, dtype=np.uint64, size=(1, count))[0]
        self._length, self._num_buckets = config.shingle_characters, config.num_buckets
        self._letters = letter_table()

    def __call__(self, text: str) -> np.ndarray:
        """Return the keys of a text's bands, shape (num_buckets,), uint64."""
        keys = np.empty(self._num_buckets, dtype=np.uint64)
        parameters = (self._letters, self._length, self._factors, self._summands)
        shingles = _sign(code_points(text), *parameters, keys)
        if shingles < 0:
            shingles = _sign(code_points(_letters_of(text)), *parameters, keys)
        if not shingles:
            _mix_bands(np.full((self._num_buckets, 1), text_key(text.encode("utf-8")), np.uint64), keys)
        return keys


def text_key(text: bytes) -> int:
    """Return 64 bits of a whole text in UTF-8, for finding equal ones."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def shingles(text: str, length: int) -> np.ndarray:
    """Return the hashes of all runs of `length` letters and digits, shape (shingles,), uint64."""
    return gram_hashes(code_points(_letters_of(text)), length)


def similarity(one: str, other: str, length: int) -> float:
    """Return the share of the shingles of both texts that are in both (Jaccard), which MinHash estimates."""
    first, second = (np.unique(shingles(text, length)) for text in (one, other))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


def _letters_of(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


@functools.cache
def letter_table() -> np.ndarray:
    """Return what each code point is in lower case, shape (FIRST_WITHOUT_CLASS,), uint32.

    NO_LETTER for what is neither letter nor digit; BY_PYTHON where lower() gives several characters (U+0130) or looks
    at those around (U+03A3, a final sigma).
    """
    table = np.full(FIRST_WITHOUT_CLASS, NO_LETTER, dtype=np.uint32)
    for code, character in enumerate(map(chr, range(FIRST_WITHOUT_CLASS))):
        lower = character.lower()
        if len(lower) > 1 or (lower != character and f"A{character}".lower() != f"a{lower}"):
            table[code] = BY_PYTHON
        elif lower.isalnum():
            table[code] = ord(lower)
    return table


@compiled
def _sign(
    codes: np.ndarray,
    table: np.ndarray,
    length: int,
    factors: np.ndarray,
    summands: np.ndarray,
    keys: np.ndarray,
) -> int:
    """Write a text's band keys; return how many shingles it has, or -1 if Python has to say what its letters are."""
    letters = np.empty(len(codes), np.uint32)
    count = letters_of(codes, table, NO_LETTER, letters)
    shingles = count - length + 1
    if count < 0 or shingles <= 0:
        return min(count, 0)
    lowest = np.full(len(factors), _SIGNED_MERSENNE, np.int64)
    block = np.empty(SHINGLE_BLOCK, np.uint64)
    for start in range(0, shingles, SHINGLE_BLOCK):
        size = min(SHINGLE_BLOCK, shingles - start)
        for index in range(size):
            block[index] = gram_hash(letters, start + index, length)
        while size % SHINGLE_LANES:  # one shingle more than once changes no minimum
            block[size] = block[size - 1]
            size += 1
        _lower(lowest, block, size, factors, summands)
    _mix_bands(lowest.view(np.uint64).reshape(len(keys), len(factors) // len(keys)), keys)
    return shingles


@compiled
def _lower(lowest: np.ndarray, shingles: np.ndarray, size: int, factors: np.ndarray, summands: np.ndarray) -> None:
    """Take the hashes of the first `size` shingles into the minima.

    x modulo 2^61 - 1 is the sum of x's upper and lower bits, less the prime where the sum reaches it. Of signed numbers
    and a loop over places, compilers make instructions that do four at once.
    """
    for which in range(len(factors)):
        factor, summand, least = factors[which], summands[which], lowest[which]
        for index in range(size):
            product = shingles[index] * factor + summand
            value = np.int64((product & _MERSENNE) + (product >> _MERSENNE_BITS))
            over = value - _SIGNED_MERSENNE
            value = over if over >= 0 else value
            least = min(least, value)
        lowest[which] = least


@compiled
def _mix_bands(numbers: np.ndarray, keys: np.ndarray) -> None:
    """Write one number for each row, of all the numbers in it."""
    for band in range(len(keys)):
        key = np.uint64(band + 1) * GRAM_MULTIPLIER
        for number in numbers[band]:
            key ^= number
            key = (key ^ (key >> _MIX_SHIFT)) * _MIX_0
            key = (key ^ (key >> _MIX_SHIFT)) * _MIX_1
            key ^= key >> _MIX_SHIFT
        keys[band] = key
