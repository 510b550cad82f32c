"""The files of a shard set: their names, types and what a whole one looks like."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmbert.data.shards.manifest import MANIFEST_FILE
from cmbert.data.shards.megatron import is_pair
from cmbert.files.operations import read_bytes

SHARD_SUFFIXES = ("bin", "idx", "words")
GUARDED_SUFFIXES = ("bin", "words")  # checked block by block as they are used; .idx is checked whole
DAMAGE = "damaged or another set's file; run `data_tools verify`, and preprocess again"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 for vocabularies up to 65,536 ids, else int32."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<i4")


def is_shard_set(path: Path) -> bool:
    """Return whether ShardSet opens what is there: a folder with a manifest, or a pair of Megatron's files."""
    return (path / MANIFEST_FILE).is_file() or is_pair(path)


def load_file(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return a file as an array, read at once."""
    return np.frombuffer(read_bytes(path), dtype)


@dataclass(frozen=True)
class OpenShard:
    """Memory maps of one open shard."""

    tokens: np.ndarray  # (n,) ids
    lengths: np.ndarray  # (documents,) int32 or int64, tokens
    pointers: np.ndarray  # (documents,) int64, first byte of each document in .bin
    words: np.ndarray  # (ceil(n / 8),) uint8, or empty: one unit per token

    def first_tokens(self, documents: np.ndarray | int) -> np.ndarray:
        """Return where documents begin in `tokens`, int64, shape of `documents`."""
        return self.pointers[documents] // self.tokens.itemsize


def unit_starts(shard: OpenShard, start: int, count: int) -> np.ndarray:
    """Return where units begin among tokens [start, start + count) of a shard, shape (count,), bool."""
    if not len(shard.words):
        return np.ones(count, dtype=bool)
    bits = np.unpackbits(shard.words[start // 8 : (start + count + 7) // 8], bitorder="little")
    return bits[start % 8 : start % 8 + count].astype(bool)
