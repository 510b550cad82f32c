"""MinHash over runs of letters."""

from hashlib import blake2b

import numpy as np

from data_tools.clean.config import DuplicatesConfig
from data_tools.clean.text.quality import code_points, gram_hashes

MERSENNE = (1 << 61) - 1


def text_key(text: str) -> int:
    """Return a hash of a whole text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Signer:
    """Signs."""

    def __init__(self, config: DuplicatesConfig):
        self.config = config
        gen = np.random.RandomState(1)
        n = config.num_buckets * config.hashes_per_bucket
        self.factors = gen.randint(1, MERSENNE, dtype=np.uint64, size=(1, n))
        self.summands = gen.randint(0, MERSENNE, dtype=np.uint64, size=(1, n))

    def __call__(self, text: str) -> np.ndarray:
        """Return keys."""
        found = shingles(text, self.config.shingle_characters)
        lowest = np.full(self.factors.shape[1], text_key(text), np.uint64)
        for first in range(0, len(found), 64):
            hashes = (found[first : first + 64, None] * self.factors + self.summands) % np.uint64(MERSENNE)
            lowest = hashes.min(0) if not first else np.minimum(lowest, hashes.min(0))
        keys = np.zeros(self.config.num_buckets, np.uint64)
        for column in lowest.reshape(self.config.num_buckets, -1).T:
            keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys


def shingles(text: str, length: int) -> np.ndarray:
    """Return the hashes of all runs of `length` letters and digits, shape (shingles,), uint64."""
    return gram_hashes(code_points("".join(filter(str.isalnum, text.lower()))), length)


def similarity(one: str, other: str, shingle_characters: int) -> float:
    """Return the share of the shingles of both texts that are in both (Jaccard), which MinHash estimates."""
    first, second = (np.unique(shingles(text, shingle_characters)) for text in (one, other))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)
