"""Megatron-Core's files: the index (MMIDIDX version 1), and what makes a pair without a manifest safe. Torch-free."""

import functools
import logging
import struct
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from cmbert.data.shards.integrity import ALONE, BlockGuard, Crew, Proof, digest_of, keep_proof, prove_file, read_proof
from cmbert.errors import ShardError
from cmbert.files.operations import doing, file_size, hash_file, patiently

IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_VERSION = 1
IDX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequence count, document-index count
DTYPE_BY_CODE: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}  # Megatron-Core's codes for what we write
CODE_BY_DTYPE = {dtype: code for code, dtype in DTYPE_BY_CODE.items()}
IDX_BLOCK_DOCUMENTS = 1 << 20  # an index is handled in blocks: 40 million short documents take 800 MB of it
OTHER_CODES = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "float64", 7: "float32"}  # Megatron-Core's, not read
LONGEST_DOCUMENT = 2**31 - 1  # tokens: the ledger and Megatron's own lengths are 32-bit


logger = logging.getLogger(__name__)


def write_idx(path: Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write Megatron-Core's index for documents of `lengths` tokens (shape (n,)) laid back to back."""
    blocks = [lengths[first : first + IDX_BLOCK_DOCUMENTS] for first in range(0, len(lengths), IDX_BLOCK_DOCUMENTS)]
    with open(path, "wb") as file:
        file.write(
            IDX_HEADER.pack(IDX_MAGIC, IDX_VERSION, CODE_BY_DTYPE[np.dtype(dtype)], len(lengths), len(lengths) + 1)
        )
        for block in blocks:
            file.write(block.astype("<i4", copy=False).tobytes())
        tokens = 0
        for block in blocks:
            ends = tokens + np.cumsum(block, dtype=np.int64)
            file.write(((ends - block) * np.dtype(dtype).itemsize).astype("<i8", copy=False).tobytes())
            tokens = int(ends[-1])
        for first in range(0, len(lengths) + 1, IDX_BLOCK_DOCUMENTS):
            file.write(np.arange(first, min(first + IDX_BLOCK_DOCUMENTS, len(lengths) + 1), dtype="<i8").tobytes())


def map_file(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return a file as an array that is read when it is used."""
    with doing("map", path):
        return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _map_columns(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    """Map an index: lengths of the sequences, tokens; their first bytes; document bounds among them; dtype of the ids.

    Raises ShardError on a torn file.
    """
    size = file_size(path) or 0
    if size < IDX_HEADER.size:
        raise ShardError(f"{path}: {size} bytes, too short for a header: truncated; preprocess again")
    with doing("read", path), open(path, "rb") as file:
        magic, version, code, num_sequences, num_bounds = IDX_HEADER.unpack(file.read(IDX_HEADER.size))
    if magic != IDX_MAGIC or version != IDX_VERSION or code not in DTYPE_BY_CODE | OTHER_CODES:
        raise ShardError(f"{path}: not a Megatron-Core index of 16- or 32-bit ids")
    if code in OTHER_CODES:
        raise ShardError(f"{path}: ids of {OTHER_CODES[code]}; uint16 and int32 are read: build it again")
    expected = IDX_HEADER.size + 12 * num_sequences + 8 * num_bounds
    if num_sequences and size == expected + num_sequences:
        raise ShardError(f"{path}: a multimodal index, with a mode for each sequence; build it again from text alone")
    if size != expected:
        raise ShardError(f"{path}: {size} bytes, its header says {expected}: truncated; preprocess again")
    raw, place = map_file(path, np.dtype(np.uint8)), IDX_HEADER.size
    lengths = np.frombuffer(raw, "<i4", num_sequences, place)
    pointers = np.frombuffer(raw, "<i8", num_sequences, place + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, place + 12 * num_sequences)
    return lengths, pointers, bounds, DTYPE_BY_CODE[code]


def map_idx(path: Path) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Map an index of ours, one sequence per document: (lengths in tokens, first bytes, dtype of the ids).

    Shape (documents,) each. Raises ShardError on a torn file.
    """
    lengths, pointers, bounds, dtype = _map_columns(path)
    if len(bounds) != len(lengths) + 1:
        raise ShardError(f"{path}: {len(lengths)} sequences and {len(bounds)} document bounds: not ours")
    return lengths, pointers, dtype


def read_idx(path: Path) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Read an index of ours: (document lengths, first tokens, id dtype); the first two int64, shape (documents,).

    Raises ShardError on a torn file.
    """
    lengths, pointers, dtype = map_idx(path)
    return lengths.astype(np.int64), pointers // dtype.itemsize, dtype


def check_index(index: Path) -> tuple[int, bool]:
    """Prove that every sequence lies back to back with the next, and in one document; in bounded memory.

    Returns the bytes that the tokens take, and whether every document is one sequence and holds a token. Raises
    ShardError.
    """
    lengths, pointers, bounds, dtype = _map_columns(index)
    end, is_plain = 0, len(bounds) == len(lengths) + 1
    for first in range(0, len(lengths), IDX_BLOCK_DOCUMENTS):
        part = slice(first, first + IDX_BLOCK_DOCUMENTS)
        sizes = lengths[part].astype(np.int64) * dtype.itemsize
        if sizes.min() < 0:
            raise ShardError(f"{index}: sequence {first + int(sizes.argmin())} has a negative length: damaged")
        starts = end + np.cumsum(sizes) - sizes
        wrong = np.flatnonzero(pointers[part] != starts)[:1]
        if len(wrong):
            raise ShardError(
                f"{index}: sequence {first + int(wrong[0])} begins at byte {pointers[part][wrong][0]}, the one before "
                f"it ends at {starts[wrong][0]}: damaged, or not laid back to back as Megatron does"
            )
        end, is_plain = int(starts[-1] + sizes[-1]), is_plain and bool(sizes.all())
    before, is_sound = 0, len(bounds) > 0 and bounds[0] == 0
    for first in range(0, len(bounds), IDX_BLOCK_DOCUMENTS):
        block = bounds[first : first + IDX_BLOCK_DOCUMENTS]
        is_sound = (
            is_sound and before <= block[0] and bool((block[1:] >= block[:-1]).all())
        )  # a difference may overflow
        is_plain = is_plain and np.array_equal(block, np.arange(first, first + len(block)))
        before = int(block[-1])
    if not is_sound or before != len(lengths):
        raise ShardError(
            f"{index}: its document bounds do not rise from 0 to its {len(lengths)} sequences: damaged, or never "
            "finished"
        )
    return end, is_plain


def check_pair(index: Path, tokens: Path) -> bool:
    """Prove that an index is sound and that `tokens` is its file. Raises ShardError.

    Returns whether every document is one sequence and holds a token.
    """
    end, is_plain = check_index(index)
    found = file_size(tokens)
    if found != end:
        is_there = "missing" if found is None else f"{found} bytes"
        raise ShardError(f"{tokens}: {is_there}, its index says {end} bytes: truncated or another index's; copy both")
    return is_plain


def is_pair(path: Path) -> bool:
    """Return whether `path` is the prefix of a pair; a folder never is."""
    return not path.is_dir() and path.with_name(f"{path.name}.idx").is_file()


@functools.lru_cache(maxsize=16)  # an evaluation opens a set once for every context
def _prove_alone(path: Path, dtype: np.dtype, size: int, changed: int) -> Proof:
    return prove_file(path, dtype, size)


class MegatronPair:
    """PREFIX.bin and PREFIX.idx, which have no manifest. Raises ShardError unless the two fit together.

    A document of several sequences is joined; a document without tokens is none. Nothing says which ids the tokenizer
    had, and nothing would tell an edited file: `prove` reads all tokens once for both.
    """

    def __init__(self, prefix: Path):
        warnings.warn(f"{prefix}: Megatron shard without word units: masking single tokens", stacklevel=4)
        self.tokens, self.index = (prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("bin", "idx"))
        self.is_plain = patiently(partial(check_pair, self.index, self.tokens))
        self.layout = digest_of("documents 1", patiently(partial(hash_file, self.index)))
        self.proof: Proof | None = None
        self.has_said = False  # what is left out

    @property
    def fingerprint(self) -> str:
        """Of index and tokens; empty until the tokens are proved."""
        return "" if self.proof is None else digest_of(self.layout, self.proof.checksums.tobytes().hex())

    def documents(self) -> tuple[np.ndarray, np.ndarray, np.dtype]:
        """Return (lengths in tokens, first bytes, dtype of the ids), shape (documents,) each; maps if it is plain."""
        lengths, pointers, bounds, dtype = _map_columns(self.index)
        if self.is_plain:
            return lengths, pointers, dtype
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        edges = ends[bounds]
        lengths = np.diff(edges)
        if lengths.max(initial=0) > LONGEST_DOCUMENT:
            raise ShardError(f"{self.index}: a document of {lengths.max()} tokens; at most {LONGEST_DOCUMENT} work")
        filled = lengths > 0
        if (empty := len(filled) - np.count_nonzero(filled)) and not self.has_said:
            self.has_said = True
            logger.info("%s: %d of its %d documents have no tokens and are left out", self.index, empty, len(filled))
        return lengths[filled], edges[:-1][filled] * dtype.itemsize, dtype

    def recall(self, folder: Path) -> None:
        """Take the proof that `folder` keeps, if it keeps one of these very files."""
        self.proof = self.proof or read_proof(self._proof_path(folder), self.tokens.stat().st_size)

    def prove(self, folder: Path | None, crew: Crew) -> None:
        """Read all tokens once, unless `folder` keeps what was found. All of `crew` call this and end alike."""
        known = crew.of_all(partial(self._recalled, folder))  # all words: a proof may have megabytes, a crew thousands
        if len(set(known)) == 1 and known[0]:
            return
        dtype, size = _map_columns(self.index)[3], file_size(self.tokens) or 0
        if crew is ALONE:
            self.proof = _prove_alone(self.tokens, dtype, size, self.tokens.stat().st_mtime_ns)
        else:
            self.proof = prove_file(self.tokens, dtype, size, crew)

    def _recalled(self, folder: Path | None) -> str:
        """Return the fingerprint, as far as it is known with what `folder` keeps."""
        if folder:
            self.recall(folder)
        return self.fingerprint

    def keep(self, folder: Path) -> None:
        """Write the proof into `folder`, for the next life of a run."""
        assert self.proof is not None
        keep_proof(self._proof_path(folder), self.proof)

    def guard(self) -> BlockGuard:
        """Return what finds, block by block, that the tokens are no longer those of the proof."""
        assert self.proof is not None
        return BlockGuard(self.tokens, self.proof.checksums, "changed since the run began to read it; restore it")

    def check_ids(self, vocab_size: int) -> None:
        """Raise ShardError when an id is not one of `vocab_size`."""
        assert self.proof is not None
        foreign = self.proof.smallest if self.proof.smallest < 0 else self.proof.largest
        if self.proof.smallest < 0 or self.proof.largest >= vocab_size:
            raise ShardError(
                f"{self.tokens}: holds id {foreign}, the tokenizer has {vocab_size} ids: made with another tokenizer, "
                "or damaged"
            )

    def _proof_path(self, folder: Path) -> Path:
        """Another name as soon as either file is another, as far as size and time of change tell."""
        found = self.tokens.stat()
        return folder / f"{digest_of(self.layout, f'{found.st_size} {found.st_mtime_ns}')}.proof.npz"
