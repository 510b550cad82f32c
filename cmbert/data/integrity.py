"""Checksums by block, so that a reader proves what it is about to use without reading terabytes first. Torch-free."""

import base64
import zlib
from pathlib import Path

import numpy as np

from cmbert.errors import ShardError
from cmbert.files import new_digest

BLOCK_BYTES = 1 << 22  # a block is checked in a millisecond; a shard of 2 GB has 500


def hash_blocks(path: Path) -> tuple[str, str]:
    """Return a file's BLAKE2b-256 hash in hex, and the CRC-32 of each of its blocks, little-endian, in base64."""
    digest, checksums = new_digest(), []
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            checksums.append(zlib.crc32(block))
    return digest.hexdigest(), base64.b64encode(np.array(checksums, dtype="<u4").tobytes()).decode("ascii")


class BlockGuard:
    """Check each block of one file the first time that something in it is used."""

    def __init__(self, path: Path, checksums: str):
        self.path = path
        self.expected = np.frombuffer(base64.b64decode(checksums), dtype="<u4")
        self.unchecked = np.ones(len(self.expected), dtype=bool)

    def check(self, contents: np.ndarray, first_byte: int, last_byte: int) -> None:
        """Raise ShardError unless the blocks that hold bytes [first_byte, last_byte) are as they were written.

        contents: the whole file, shape (bytes,), uint8.
        """
        first, last = first_byte // BLOCK_BYTES, -(-last_byte // BLOCK_BYTES)
        for block in (first + np.flatnonzero(self.unchecked[first:last])).tolist():
            start = block * BLOCK_BYTES
            if zlib.crc32(contents[start : start + BLOCK_BYTES].data) != self.expected[block]:
                raise ShardError(
                    f"{self.path}: bytes {start} to {start + BLOCK_BYTES} are not what was written: damaged or another "
                    "set's file; run `data_tools verify`, and preprocess again"
                )
            self.unchecked[block] = False
