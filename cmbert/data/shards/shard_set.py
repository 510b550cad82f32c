"""THE shard format: token ids (.bin), Megatron-Core index (.idx), word-unit bits (.words), manifest.json. Torch-free.

Layout and meaning: docs/shard_format.md. Megatron-Core's own files, which have no manifest: megatron.py.
"""

import hashlib
import math
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np

from cmbert.data.shards.integrity import ALONE, BlockGuard, Crew, num_blocks, unpack_checksums
from cmbert.data.shards.layout import DAMAGE, SHARD_SUFFIXES, OpenShard, load_file, unit_starts
from cmbert.data.shards.manifest import MANIFEST_FILE, check_size, read_manifest
from cmbert.data.shards.megatron import MegatronPair, check_index, is_pair, map_file, map_idx
from cmbert.errors import ShardError
from cmbert.files.operations import file_size, hash_file, patiently

COUNT_BLOCK_TOKENS = 1 << 24
OPEN_SHARDS = 32  # three maps and file handles each, far below Linux's default of 1,024


class ShardSet:
    """A directory of shards, opened lazily, read by document. `path` may also be a Megatron-Core prefix (PREFIX.idx).

    Raises ShardError when the set has no manifest, a file is missing or its size is not the manifest's, or a Megatron
    pair does not fit together; of such a pair, `prove` comes before its tokens. Opening a file is tried again for half
    a minute where that may help (files.patiently). Once it is mapped, a page that cannot be read ends the process with
    SIGBUS, which nothing here can catch or retry: the next life of the run reads it anew.
    """

    def __init__(self, path: str | Path, mmap: bool = True):
        self.path, self.mmap = Path(path), mmap
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._guards: dict[int, dict[str, BlockGuard]] = {}
        self._pair: MegatronPair | None = None
        if is_pair(self.path):
            self._describe_megatron(MegatronPair(self.path))
        else:
            self._describe_manifest(read_manifest(self.path))
        self.documents_before = np.cumsum([0, *self.shard_documents])  # (shards + 1,)
        self.num_documents = int(self.documents_before[-1])
        self.num_tokens = sum(self.shard_tokens)

    def __getstate__(self) -> dict:
        """Loader processes reopen the files: a pickled memory map would carry its whole contents."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _describe_manifest(self, manifest: dict) -> None:
        self.manifest = manifest
        self.tokenizer_fingerprint: str | None = manifest["tokenizer"]["fingerprint"]
        self.vocab_size: int | None = manifest["tokenizer"]["vocab_size"]
        self.prefixes = [self.path / shard["name"] for shard in manifest["shards"]]
        self.shard_documents = [shard["documents"] for shard in manifest["shards"]]
        self.shard_tokens = [shard["tokens"] for shard in manifest["shards"]]
        self.has_words = True
        digest = hashlib.blake2b(str(self.tokenizer_fingerprint).encode(), digest_size=16)
        for shard in manifest["shards"]:
            for suffix in SHARD_SUFFIXES:
                check_size(self.path / f"{shard['name']}.{suffix}", shard["bytes"][suffix])
                digest.update(shard["blake2b"][suffix].encode())
        self.fingerprint = self.layout = digest.hexdigest()

    def _describe_megatron(self, pair: MegatronPair) -> None:
        self._pair, self.manifest = pair, {}
        self.tokenizer_fingerprint = self.vocab_size = None
        self.prefixes, self.has_words = [self.path], False
        shard = self._shard(0)
        self.shard_documents, self.shard_tokens = [len(shard.lengths)], [len(shard.tokens)]
        self.fingerprint, self.layout = pair.fingerprint, pair.layout

    def prove(self, folder: Path | None = None, crew: Crew = ALONE) -> None:
        """Read all tokens of a Megatron pair once, unless `folder` keeps the proof; of our own sets the manifest knows.

        All of `crew` call this, share the reading and end alike. Raises ShardError.
        """
        if self._pair:
            self._pair.prove(folder, crew)
            self._accept_proof(self._pair)

    def recall_proof(self, folder: Path) -> None:
        """Take the proof of a Megatron pair that `folder` keeps, if it does: `fingerprint` is known then."""
        if self._pair:
            self._pair.recall(folder)
            self._accept_proof(self._pair)

    def keep_proof(self, folder: Path) -> None:
        """Keep the proof of a Megatron pair, so that the next life of a run need not read all its tokens."""
        if self._pair:
            self._pair.keep(folder)

    def check_ids(self, vocab_size: int) -> None:
        """Raise ShardError when a Megatron pair that is proved holds an id that is not one of `vocab_size`."""
        if self._pair:
            self._pair.check_ids(vocab_size)

    def _accept_proof(self, pair: MegatronPair) -> None:
        self.fingerprint = pair.fingerprint
        if pair.proof is not None and not self._guards.get(0):
            self._guards[0] = {"bin": pair.guard()}

    def _shard(self, index: int) -> OpenShard:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        prefix = self.prefixes[index]
        file = {suffix: prefix.with_name(f"{prefix.name}.{suffix}") for suffix in SHARD_SUFFIXES}
        self._guards_of(index)
        read = self._pair.documents if self._pair else partial(map_idx, file["idx"])
        lengths, pointers, dtype = patiently(read)
        words = self._map(file["words"], np.dtype(np.uint8)) if self.has_words else np.zeros(0, np.uint8)
        shard = OpenShard(tokens=self._map(file["bin"], dtype), lengths=lengths, pointers=pointers, words=words)
        self._open[index] = shard
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def _guard(self, index: int) -> dict[str, BlockGuard]:
        """Check a shard's index, and make the guards of its other files; none as long as there are no checksums."""
        if not self.has_words:
            return {}
        entry, prefix = self.manifest["shards"][index], self.prefixes[index]
        path = prefix.with_name(f"{prefix.name}.idx")
        if "crc32" in entry and patiently(partial(hash_file, path)) != entry["blake2b"]["idx"]:
            raise ShardError(f"{path}: its hash is not the manifest's: damaged or another set's; preprocess again")
        end, is_plain = patiently(partial(check_index, path))
        itemsize = map_idx(path)[2].itemsize
        if not is_plain or (end, end // itemsize) != (entry["bytes"]["bin"], entry["tokens"]):
            raise ShardError(
                f"{path}: its documents are not the manifest's {entry['documents']} of {entry['tokens']} tokens, each "
                "of one sequence with a token in it; preprocess again"
            )
        known = [suffix for suffix in SHARD_SUFFIXES if suffix in entry.get("crc32", {})]
        return {suffix: self._block_guard(index, suffix, entry["crc32"][suffix]) for suffix in known}

    def _block_guard(self, index: int, suffix: str, packed: str) -> BlockGuard:
        path = self.prefixes[index].with_name(f"{self.prefixes[index].name}.{suffix}")
        try:
            checksums = unpack_checksums(packed)
        except ValueError:
            checksums = np.zeros(0, np.uint32)
        if len(checksums) != num_blocks(self.manifest["shards"][index]["bytes"][suffix]):
            raise ShardError(
                f"{self.path / MANIFEST_FILE}: shards[{index}].crc32.{suffix}: not one checksum for each block of "
                f"{path.name}; damaged, preprocess again"
            )
        return BlockGuard(path, checksums, DAMAGE)

    def check_indexes(self) -> None:
        """Raise ShardError unless every shard's index is sound and says what the manifest does."""
        for index in range(len(self.prefixes)):
            self._guards_of(index)

    def _guards_of(self, index: int) -> dict[str, BlockGuard]:
        if index not in self._guards:
            self._guards[index] = self._guard(index)
        return self._guards[index]

    def check_documents(self, first: int, last: int) -> None:
        """Raise ShardError unless tokens and unit bits of documents [first, last) are what was written.

        Every block of a file is read for this once, then known to be sound.
        """
        assert not self._pair or self._pair.proof is not None, "prove() comes before the first token"
        while first < last:
            index = self.shard_of(first)
            shard, guards = self._shard(index), self._guards[index]
            before, end = int(self.documents_before[index]), min(last, int(self.documents_before[index + 1]))
            bounds = shard.first_tokens(np.array([first - before, end - 1 - before]))
            tokens = (int(bounds[0]), int(bounds[1]) + int(shard.lengths[end - 1 - before]))
            if "bin" in guards:
                size = shard.tokens.itemsize
                guards["bin"].check(shard.tokens.view(np.uint8), tokens[0] * size, tokens[1] * size)
            if "words" in guards:
                guards["words"].check(shard.words, tokens[0] // 8, -(-tokens[1] // 8))
            first = end

    def _map(self, path: Path, dtype: np.dtype) -> np.ndarray:
        size = patiently(partial(file_size, path))
        if size is None:
            raise ShardError(f"{path}: missing; preprocess again")
        if size == 0:
            return np.zeros(0, dtype)
        return patiently(partial(map_file if self.mmap else load_file, path, dtype))

    @property
    def token_dtype(self) -> np.dtype:
        """Type of the stored ids."""
        return self._shard(0).tokens.dtype

    def shard_lengths(self, index: int) -> np.ndarray:
        """Return the tokens of every document of one shard, shape (documents,), int64."""
        return self._shard(index).lengths.astype(np.int64)

    def document_lengths(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the tokens of documents [first, last) of the set, shape (last - first,), int64."""
        last = self.num_documents if last is None else last
        parts = [np.zeros(0, np.int64)]
        while first < last:
            index = self.shard_of(first)
            before, end = int(self.documents_before[index]), min(last, int(self.documents_before[index + 1]))
            parts.append(self._shard(index).lengths[first - before : end - before].astype(np.int64))
            first = end
        return np.concatenate(parts)

    def shard_of(self, document: int) -> int:
        """Return the number of the shard that holds a document."""
        return int(np.searchsorted(self.documents_before, document, side="right")) - 1

    def locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard of each document and its first token there, shape (documents,), int64 each."""
        shards = np.searchsorted(self.documents_before, documents, side="right") - 1
        firsts = np.empty(len(documents), np.int64)
        for index in np.unique(shards).tolist():
            here = shards == index
            firsts[here] = self._shard(index).first_tokens(documents[here] - int(self.documents_before[index]))
        return shards, firsts

    def shard_arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return all tokens of a shard and its unit bits as they are stored; the bits are empty for one unit per token.

        tokens: shape (n,). bits: shape (ceil(n / 8),), uint8. Memory maps, not to be written to.
        """
        shard = self._shard(index)
        return shard.tokens, shard.words

    def document_tokens(self, document: int) -> np.ndarray:
        """Return the ids of a document, shape (length,), a view of the shard."""
        index = self.shard_of(document)
        shard, local = self._shard(index), document - int(self.documents_before[index])
        first = int(shard.first_tokens(local))
        return shard.tokens[first : first + int(shard.lengths[local])]

    def read(self, document: int, start: int = 0, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [start, start + count) of a document, and where its maskable units begin.

        tokens: shape (count,), the stored dtype. unit_starts: shape (count,), bool; the first is always set.
        """
        index = self.shard_of(document)
        shard = self._shard(index)
        local = document - int(self.documents_before[index])
        length = int(shard.lengths[local]) - start
        count = length if count is None else count
        assert start >= 0
        assert 0 < count <= length
        first = int(shard.first_tokens(local)) + start
        starts = unit_starts(shard, first, count)
        starts[0] = True
        return shard.tokens[first : first + count], starts

    def read_documents(self, first: int, last: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return documents from `first` on: up to `last`, the end of the shard or `most_tokens`, at least one.

        tokens: shape (n,), the stored dtype. lengths: shape (documents,), int64, tokens. unit_starts: shape (n,), bool.
        """
        index = self.shard_of(first)
        shard, before = self._shard(index), int(self.documents_before[index])
        lengths = shard.lengths[first - before : last - before].astype(np.int64)
        fitting = int(np.searchsorted(np.cumsum(lengths), most_tokens, side="right"))
        lengths = lengths[: max(fitting, 1)]
        start, count = int(shard.first_tokens(first - before)), int(lengths.sum())
        return shard.tokens[start : start + count], lengths, unit_starts(shard, start, count)

    def token_counts(self, vocab_size: int, most_tokens: int | None = None) -> np.ndarray:
        """Return how often each id occurs in the set, shape (vocab_size,), int64, in bounded memory.

        most_tokens: of a larger set about so many are counted, in blocks all over it; None: all. Raises ShardError for
        an id that is not one of `vocab_size`.
        """
        counts = np.zeros(vocab_size, dtype=np.int64)
        share = min(1.0, most_tokens / self.num_tokens) if most_tokens else 1.0
        for index in range(len(self.prefixes)):
            tokens = self._shard(index).tokens
            for first in range(0, len(tokens), COUNT_BLOCK_TOKENS):
                block = tokens[first : first + COUNT_BLOCK_TOKENS]
                block = block[: math.ceil(share * len(block))]
                if block.min() < 0 or block.max() >= vocab_size:
                    raise ShardError(
                        f"{self.prefixes[index]}: holds ids from {block.min()} to {block.max()}, the tokenizer has "
                        f"{vocab_size}: made with another tokenizer, or damaged"
                    )
                counts += np.bincount(block, minlength=vocab_size)
        return counts
