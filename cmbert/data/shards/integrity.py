"""Checksums by block, so that a reader proves what it is about to use without reading terabytes first. Torch-free."""

import base64
import hashlib
import io
import logging
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmbert.errors import CmbertError, ShardError
from cmbert.files.arrays import read_arrays
from cmbert.files.operations import doing, new_digest, patiently
from cmbert.files.whole import write_bytes

BLOCK_BYTES = 1 << 22  # a block is checked in a millisecond; a shard of 2 GB has 500
PROOF_THREADS = 8  # of one process; checksums and reading hold no lock, and a file server likes several readers
PROOF_SAID_BYTES = 10**10  # reading less takes seconds and needs no word

logger = logging.getLogger(__name__)


def digest_of(*parts: str) -> str:
    """Return the BLAKE2b-128 hash of words, in hex."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def hash_blocks(path: Path) -> tuple[str, str]:
    """Return a file's BLAKE2b-256 hash in hex, and the CRC-32 of each of its blocks, little-endian, in base64."""
    digest, checksums = new_digest(), []
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            checksums.append(zlib.crc32(block))
    return digest.hexdigest(), base64.b64encode(np.array(checksums, dtype="<u4").tobytes()).decode("ascii")


def unpack_checksums(packed: str) -> np.ndarray:
    """Return the checksums that `hash_blocks` packed, shape (blocks,), uint32. Raises ValueError for another text."""
    return np.frombuffer(base64.b64decode(packed, validate=True), dtype="<u4")


def num_blocks(num_bytes: int) -> int:
    """Return of how many blocks a file is."""
    return -(-num_bytes // BLOCK_BYTES)


class BlockGuard:
    """Check each block of one file the first time that something in it is used.

    expected: CRC-32 of each block, shape (blocks,). fault: what another checksum means, and the remedy.
    """

    def __init__(self, path: Path, expected: np.ndarray, fault: str):
        self.path, self.expected, self.fault = path, expected, fault
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
                    f"{self.path}: bytes {start} to {start + BLOCK_BYTES} are not what was written: {self.fault}"
                )
            self.unchecked[block] = False


class Proof(NamedTuple):
    """What one reading of a file of ids found."""

    checksums: np.ndarray
    """CRC-32 of each block, shape (blocks,), uint32."""
    smallest: int
    """0 if no id is negative."""
    largest: int
    """-1 in an empty file."""


class Crew(NamedTuple):
    """Processes that read a file together. gather: of a value, those of all in order of rank, the same for each."""

    rank: int
    size: int
    gather: Callable[[Any], list[Any]]

    def of_all(self, action: Callable[[], Any]) -> list[Any]:
        """Return what `action` returns in each process. What it raises of OSError and CmbertError in one, all raise."""
        value: Any
        try:
            value = action()
        except (OSError, CmbertError) as error:
            value = error.with_traceback(None)
        found = self.gather(value)
        for result in found:
            if isinstance(result, (OSError, CmbertError)):
                raise result
        return found


ALONE = Crew(0, 1, lambda value: [value])


def prove_file(path: Path, dtype: np.dtype, num_bytes: int, crew: Crew = ALONE) -> Proof:
    """Read the `num_bytes` of a file of ids once, each of `crew` an equal part of it, in bounded memory.

    All of `crew` call this, and what one of them raises (OSError, ShardError), all raise.
    """
    if num_bytes >= PROOF_SAID_BYTES:
        logger.info("%s: reading all %.0f GB once, to know its ids and to tell when it changes", path, num_bytes / 1e9)
    blocks = num_blocks(num_bytes)
    first, last = (blocks * rank // crew.size for rank in (crew.rank, crew.rank + 1))
    return _join(crew.of_all(partial(_prove_blocks, path, dtype, num_bytes, first, last)))


def _join(parts: list[Proof]) -> Proof:
    return Proof(
        np.concatenate([np.zeros(0, np.uint32), *(part.checksums for part in parts)]),
        min((part.smallest for part in parts), default=0),
        max((part.largest for part in parts), default=-1),
    )


def _prove_blocks(path: Path, dtype: np.dtype, num_bytes: int, first: int, last: int) -> Proof:
    """Read blocks [first, last) in threads, each its own stretch of the file."""
    count = min(PROOF_THREADS, last - first)
    if count == 0:
        return _join([])
    edges = [first + (last - first) * number // count for number in range(count + 1)]
    stop = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        try:
            return _join(list(pool.map(partial(_prove_stretch, path, dtype, num_bytes, stop), edges[:-1], edges[1:])))
        finally:
            stop.set()  # Ctrl-C, or a stretch that failed: the others need not go on


def _prove_stretch(path: Path, dtype: np.dtype, num_bytes: int, stop: threading.Event, first: int, last: int) -> Proof:
    buffer, checksums = np.empty(BLOCK_BYTES, np.uint8), np.zeros(last - first, np.uint32)
    smallest, largest = 0, -1
    with doing("open", path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        for number in range(last - first):
            if stop.is_set():
                break
            start = (first + number) * BLOCK_BYTES
            block = buffer[: min(BLOCK_BYTES, num_bytes - start)]
            patiently(partial(_read_block, path, descriptor, block, start))
            checksums[number] = zlib.crc32(block.data)
            ids = block.view(dtype)
            largest = max(largest, int(ids.max()))
            if dtype.kind == "i":
                smallest = min(smallest, int(ids.min()))
    finally:
        os.close(descriptor)
    return Proof(checksums, smallest, largest)


def _read_block(path: Path, descriptor: int, block: np.ndarray, start: int) -> None:
    filled = 0
    with doing("read", path):
        while filled < len(block):
            count = os.preadv(descriptor, [block[filled:].data], start + filled)
            if not count:
                raise ShardError(f"{path}: ends at byte {start + filled}: cut short while it was read")
            filled += count


def keep_proof(path: Path, proof: Proof) -> None:
    """Write a proof, whole or not at all."""
    with doing("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez(packed, checksums=proof.checksums, ids=np.array([proof.smallest, proof.largest]))
    write_bytes(path, packed.getvalue())


def read_proof(path: Path, num_bytes: int) -> Proof | None:
    """Return the proof of a file of `num_bytes` kept at `path`, or None if there is none. Raises ShardError."""
    remedy = "remove it: the next start makes it again"
    kept = read_arrays(path, {"checksums": np.uint32, "ids": np.int64}, error=ShardError, remedy=remedy)
    if kept is None:
        return None
    if len(kept["ids"]) != 2 or len(kept["checksums"]) != num_blocks(num_bytes):
        raise ShardError(f"{path}: damaged: no proof of {num_bytes} bytes; {remedy}")
    return Proof(kept["checksums"], *kept["ids"].tolist())
