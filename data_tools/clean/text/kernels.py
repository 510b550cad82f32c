"""The loops over characters, compiled. Code points and tables in, numbers out, no state."""

import numpy as np

from cmbert.machine.compiled import compiled

GRAM_SHIFT = np.uint64(29)
GRAM_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio of Knuth's multiplicative hashing


@compiled
def gram_hash(codes: np.ndarray, first: int, length: int) -> np.uint64:
    """A 64-bit hash of the `length` characters from `first` on."""
    found = np.uint64(0)
    for position in range(first, first + length):
        found = (found + np.uint64(codes[position])) * GRAM_MULTIPLIER
        found ^= found >> GRAM_SHIFT
    return found
