"""Counter-based random generators keyed by (seed, purpose, index): the same numbers on any rank, worker or restart.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), through `numpy.random.Philox`.
"""

import hashlib

import numpy as np


def stream_key(seed: int, purpose: str) -> int:
    """128-bit Philox key of one (seed, purpose) stream."""
    digest = hashlib.blake2b(f"{purpose}\0{seed}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return the generator of stream (seed, purpose) at `index` (up to three integers of 64 bits).

    The index fills the high words of Philox's 256-bit counter: each index owns 2^64 draws and shares none.
    """
    counter = [0, *index, *([0] * (3 - len(index)))]
    return np.random.Generator(np.random.Philox(counter=counter, key=stream_key(seed, purpose)))


def integer_seed(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit seed for a library that has its own generator (torch's initialisation)."""
    return int(generator(seed, purpose, *index).integers(0, 2**63 - 1))
