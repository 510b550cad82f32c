"""Writing shards: documents in, files of the format out (docs/shard_format.md)."""

from pathlib import Path

import numpy as np

from cmbert.data.shards.integrity import hash_blocks
from cmbert.data.shards.layout import GUARDED_SUFFIXES, SHARD_SUFFIXES
from cmbert.data.shards.megatron import write_idx


class ShardWriter:
    """Write one shard, a batch of documents at a time, in memory bounded by the shard's document count."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype):
        self.directory, self.name, self.dtype = directory, name, np.dtype(dtype)
        self.lengths: list[np.ndarray] = []
        self.num_tokens = self.num_units = 0
        self._spare_bits = np.zeros(0, dtype=np.uint8)  # fewer than 8 bits not yet written to .words
        self._bin = open(directory / f"{name}.bin", "wb")
        self._words = open(directory / f"{name}.words", "wb")

    def append(self, tokens: np.ndarray, lengths: np.ndarray, unit_starts: np.ndarray) -> None:
        """Add documents laid back to back.

        tokens: ids, shape (n,). lengths: tokens of each document, all positive, summing to n.
        unit_starts: shape (n,), nonzero where a token begins a maskable unit; every document's first token does.
        """
        assert len(tokens) == len(unit_starts) == lengths.sum()
        assert lengths.min(initial=1) > 0
        self._bin.write(tokens.astype(self.dtype, copy=False).tobytes())
        bits = np.concatenate([self._spare_bits, unit_starts.astype(np.uint8)])
        whole = len(bits) - len(bits) % 8
        self._words.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._spare_bits = bits[whole:]
        self.lengths.append(lengths.astype("<i4"))
        self.num_tokens += len(tokens)
        self.num_units += int(np.count_nonzero(unit_starts))

    def close(self) -> dict:
        """Finish the three files and return the shard's manifest entry."""
        self._words.write(np.packbits(self._spare_bits, bitorder="little").tobytes())
        self._bin.close()
        self._words.close()
        lengths = np.concatenate([np.zeros(0, "<i4"), *self.lengths])
        self.lengths.clear()
        write_idx(self.directory / f"{self.name}.idx", lengths, self.dtype)
        paths = {suffix: self.directory / f"{self.name}.{suffix}" for suffix in SHARD_SUFFIXES}
        hashes = {suffix: hash_blocks(path) for suffix, path in paths.items()}
        return {
            "name": self.name,
            "documents": len(lengths),
            "tokens": self.num_tokens,
            "units": self.num_units,
            "bytes": {suffix: path.stat().st_size for suffix, path in paths.items()},
            "blake2b": {suffix: whole for suffix, (whole, _) in hashes.items()},
            "crc32": {suffix: hashes[suffix][1] for suffix in GUARDED_SUFFIXES},
        }
