"""Documents -> rows: a pure function of (shard set, context, block, seed, epoch); any row is found in O(log n).

Documents are grouped, in shard order, into shuffle blocks of about `shuffle_block_rows` rows. How many rows a block
makes follows from document lengths alone, so the plan needs only the .idx files; which segments share a row is found,
by best fit, when a block is first read. An epoch shuffles the blocks, and the rows across a group of them.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ShardError
from cmbert.files.arrays import read_arrays
from cmbert.files.operations import doing, file_size
from cmbert.files.whole import write_bytes
from cmbert.seeding import generator
from cmbert.tokenizer import SPECIALS_PER_SEGMENT

CUT_SEARCH_SHARE = 8  # a cut looks for a sentence end in the last 1/8 of the segment
LOST_PER_ROW = 4  # positions: the specials of a filler segment, and a gap too small to hold one (< 3 positions)
PLAN_VERSION = 1  # raise it when a plan or what is made of it changes: a cached plan of another version is not used
PLAN_DOCUMENTS = 1 << 20  # lengths planned at a time
GROUPS_KEPT = 2  # groups of blocks whose order is in memory


@dataclass(frozen=True)
class PackingPlan:
    """The shuffle blocks of a shard set: block w is documents [starts[w], starts[w + 1]) and makes rows[w] rows."""

    starts: np.ndarray  # (blocks + 1,) int64
    rows: np.ndarray  # (blocks,) int32


@dataclass(frozen=True)
class SegmentTable:
    """Segments of one block, by row: segment i is tokens [starts[i], starts[i] + lengths[i]) of documents[i]."""

    documents: np.ndarray  # (segments,) int64
    starts: np.ndarray  # (segments,) int64, tokens
    lengths: np.ndarray  # (segments,) int64, tokens without [CLS] and [SEP]
    shards: np.ndarray  # (segments,) int64, number of the shard
    firsts: np.ndarray  # (segments,) int64, first token of the segment in its shard
    row_bounds: np.ndarray  # (rows + 1,) int64, into the arrays above
    attention_cost: np.ndarray  # (rows,) int64, sum of the squared lengths of the segments, specials included

    def row(self, index: int) -> list[tuple[int, int, int]]:
        """Return (document, start, length) of every segment of one row."""
        part = slice(self.row_bounds[index], self.row_bounds[index + 1])
        return list(
            zip(self.documents[part].tolist(), self.starts[part].tolist(), self.lengths[part].tolist(), strict=True)
        )


class SourceRows:
    """All rows of one shard set at one context length, for any epoch.

    shards: the set. context: row length, tokens. sentence_ends: shape (vocab_size,), bool, tokens that end a sentence.
    source: index of the set in the blend, part of every random key. plan_folder: where `keep_plan` keeps the plan.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        context: int,
        sentence_ends: np.ndarray,
        shuffle_block_rows: int,
        shuffle_blocks: int,
        seed: int,
        source: int = 0,
        plan_folder: Path | None = None,
    ):
        self.shards, self.context, self.sentence_ends = shards, context, sentence_ends
        self.shuffle_blocks, self.seed, self.source = shuffle_blocks, seed, source
        self.plan_path = plan_path(plan_folder, shards, context, shuffle_block_rows) if plan_folder else None
        self.plan = read_or_make_plan(self.plan_path, shards, context, shuffle_block_rows)
        self.num_rows = int(self.plan.rows.sum(dtype=np.int64))  # the same in every epoch
        self._tables: OrderedDict[tuple[int, int], SegmentTable] = OrderedDict()
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._groups: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict:
        """Loader processes make their own tables."""
        return {**self.__dict__, "_tables": OrderedDict(), "_groups": OrderedDict(), "_epoch": None}

    def keep_plan(self) -> None:
        """Write the plan to its place, whole or not at all, for the next run to read."""
        assert self.plan_path is not None
        if file_size(self.plan_path) is not None:
            return
        with doing("create", self.plan_path.parent):
            self.plan_path.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        np.savez(packed, starts=self.plan.starts, rows=self.plan.rows)
        write_bytes(self.plan_path, packed.getvalue())

    def row(self, epoch: int, index: int) -> list[tuple[int, int, int]]:
        """Return the segments (document, start, length) of row `index` (0 <= index < num_rows) of an epoch."""
        table, place = self.find(epoch, index)
        return table.row(place)

    def find(self, epoch: int, index: int) -> tuple[SegmentTable, int]:
        """Return the table that holds row `index` of an epoch, and the row's number in it."""
        order, group_ends = self._epoch_order(epoch)
        group = int(np.searchsorted(group_ends, index, side="right"))
        before = int(group_ends[group - 1]) if group else 0
        blocks, ends, shuffled = self._group_order(epoch, group, order)
        place = int(shuffled[index - before])
        slot = int(np.searchsorted(ends, place, side="right"))
        return self._table(epoch, int(blocks[slot])), place - (int(ends[slot - 1]) if slot else 0)

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shuffled blocks of an epoch, and the number of rows up to the end of each group of them."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = generator(self.seed, "windows", self.source, epoch).permutation(len(self.plan.rows))
            firsts = np.arange(0, len(order), self.shuffle_blocks)
            rows = np.add.reduceat(self.plan.rows[order], firsts, dtype=np.int64)
            self._epoch = (epoch, order, np.cumsum(rows))
        return self._epoch[1], self._epoch[2]

    def _group_order(self, epoch: int, group: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the blocks of a group, where the rows of each end, and the shuffled rows of the group."""
        key = (epoch, group)
        if key not in self._groups:
            blocks = order[group * self.shuffle_blocks : (group + 1) * self.shuffle_blocks]
            ends = np.cumsum(self.plan.rows[blocks], dtype=np.int64)
            shuffled = generator(self.seed, "rows", self.source, epoch, group).permutation(int(ends[-1]))
            self._groups[key] = (blocks, ends, shuffled)
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        return self._groups[key]

    def _table(self, epoch: int, block: int) -> SegmentTable:
        key = (epoch, block)
        if key not in self._tables:
            self._tables[key] = self._pack_block(epoch, block)
            if len(self._tables) > GROUPS_KEPT * self.shuffle_blocks:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def _pack_block(self, epoch: int, block: int) -> SegmentTable:
        from cmbert.data.best_fit import best_fit  # numba takes its time, and who only counts rows needs none

        first, last = (int(bound) for bound in self.plan.starts[block : block + 2])
        self.shards.check_documents(first, last)
        order = generator(self.seed, "documents", self.source, epoch, block).permutation(last - first)
        documents, starts, lengths = self._segments(first + order, self.shards.document_lengths(first, last)[order])
        by_length = np.argsort(-lengths, kind="stable")
        documents, starts, lengths = documents[by_length], starts[by_length], lengths[by_length]
        num_rows = int(self.plan.rows[block])
        rows, segments, offsets, placed = best_fit(lengths, num_rows, self.context)
        by_row = np.argsort(rows, kind="stable")
        rows, segments, placed = rows[by_row], segments[by_row], placed[by_row]
        documents, starts = documents[segments], starts[segments] + offsets[by_row]
        shards, firsts = self.shards.locate(documents)
        row_bounds = np.searchsorted(rows, np.arange(num_rows + 1))
        squares = (placed + SPECIALS_PER_SEGMENT) ** 2.0
        attention_cost = np.bincount(rows, weights=squares, minlength=num_rows).astype(np.int64)
        return SegmentTable(documents, starts, placed, shards, firsts + starts, row_bounds, attention_cost)

    def _segments(self, documents: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut what is longer than a row; return document, first token and length of every segment, in order."""
        from cmbert.data.kernels import cut_document  # as above

        capacity = self.context - SPECIALS_PER_SEGMENT
        long = np.flatnonzero(lengths > capacity)
        if not len(long):
            return documents, np.zeros(len(documents), np.int64), lengths
        starts, sizes = [], []
        counts = np.ones(len(documents), np.int64)
        for index in long.tolist():
            tokens = self.shards.document_tokens(int(documents[index]))
            bounds = cut_document(tokens, self.sentence_ends, capacity, capacity // CUT_SEARCH_SHARE)
            starts.append(bounds[:-1])
            sizes.append(np.diff(bounds))
            counts[index] = len(bounds) - 1
        segment_lengths = np.repeat(lengths, counts)
        segment_starts = np.zeros(len(segment_lengths), np.int64)
        cut = np.repeat(lengths > capacity, counts)
        segment_starts[cut], segment_lengths[cut] = np.concatenate(starts), np.concatenate(sizes)
        return np.repeat(documents, counts), segment_starts, segment_lengths


def plan_path(folder: Path, shards: ShardSet, context: int, shuffle_block_rows: int) -> Path:
    """Return where the plan of a shard set is kept; another name as soon as anything that it follows from changes."""
    described = f"{PLAN_VERSION} {shards.layout} {context} {shuffle_block_rows} {CUT_SEARCH_SHARE} {LOST_PER_ROW}"
    return folder / f"{hashlib.blake2b(described.encode(), digest_size=12).hexdigest()}.npz"


def read_or_make_plan(path: Path | None, shards: ShardSet, context: int, shuffle_block_rows: int) -> PackingPlan:
    """Return the plan kept at `path`, or make it from the lengths of all documents.

    Raises ShardError if what is kept is damaged.
    """
    remedy = "remove it: the next start makes it again"
    wanted = {"starts": np.int64, "rows": np.int32}
    kept = read_arrays(path, wanted, error=ShardError, remedy=remedy) if path else None
    if kept is None:
        return plan_blocks(document_chunks(shards), context, shuffle_block_rows)
    plan = PackingPlan(kept["starts"], kept["rows"])
    fits = len(plan.starts) == len(plan.rows) + 1 and [*plan.starts[[0, -1]]] == [0, shards.num_documents]
    if not (fits and (np.diff(plan.starts) > 0).all() and (plan.rows > 0).all()):
        raise ShardError(f"{path}: damaged: no plan of {shards.num_documents} documents; {remedy}")
    return plan


def document_chunks(shards: ShardSet) -> Iterator[np.ndarray]:
    """Yield the lengths of all documents in bounded chunks."""
    for first in range(0, shards.num_documents, PLAN_DOCUMENTS):
        yield shards.document_lengths(first, min(first + PLAN_DOCUMENTS, shards.num_documents))


def plan_blocks(chunks: Iterable[np.ndarray], context: int, shuffle_block_rows: int) -> PackingPlan:
    """Split documents into blocks and say how many rows each makes, from lengths alone, in one pass.

    chunks: document lengths, tokens, (documents,) int64 each. The row count leaves room for what `best_fit` may lose:
    LOST_PER_ROW positions a row, and the most segments that `cut_document` can make of a document.
    """
    capacity = context - SPECIALS_PER_SEGMENT
    shortest_cut = capacity - capacity // CUT_SEARCH_SHARE
    starts, costs_before = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    num_documents, total, block = 0, 0, -1
    for lengths in chunks:
        cost = lengths + SPECIALS_PER_SEGMENT
        long = lengths > capacity
        if long.any():
            cost[long] = lengths[long] + SPECIALS_PER_SEGMENT * -(-lengths[long] // shortest_cut)
        ends = total + np.cumsum(cost)
        before = ends - cost
        block_of_document = before // (shuffle_block_rows * context)
        opens = np.flatnonzero(np.diff(block_of_document, prepend=block))
        starts.append(num_documents + opens)
        costs_before.append(before[opens])
        num_documents += len(lengths)
        if len(lengths):
            total, block = int(ends[-1]), int(block_of_document[-1])
    block_cost = np.diff(np.concatenate([*costs_before, [total]]))
    rows = -(-block_cost // (context - LOST_PER_ROW))
    return PackingPlan(np.concatenate([*starts, [num_documents]]), rows.astype(np.int32))
