"""Documents -> rows: a pure function of (shard set, context, window, seed, epoch); any row is found in O(log n).

Documents are grouped, in shard order, into windows of about `window_rows` rows. How many rows a window makes follows
from document lengths alone, so the plan needs only the .idx files; which pieces share a row is worked out, by best fit,
when a window is first read. An epoch shuffles the windows, and the rows across a group of them.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from cmbert.data.shards import ShardSet
from cmbert.seeding import generator

SPECIALS_PER_PIECE = 2  # [CLS] and [SEP]
CUT_SEARCH_SHARE = 8  # ours: a cut looks for a sentence end in the last 1/8 of the piece
LOST_PER_ROW = 4  # positions: the specials of a filler piece, and a gap too small to hold one (< 3 positions)


@dataclass(frozen=True)
class PieceTable:
    """Pieces of one window, sorted by row: piece i is tokens [starts[i], starts[i] + lengths[i]) of documents[i]."""

    documents: np.ndarray  # (pieces,) int64
    starts: np.ndarray  # (pieces,) int64, tokens
    lengths: np.ndarray  # (pieces,) int64, tokens without [CLS] and [SEP]
    row_bounds: np.ndarray  # (rows + 1,) int64, into the arrays above

    def row(self, index: int) -> list[tuple[int, int, int]]:
        """Return (document, start, length) of every piece of one row."""
        part = slice(self.row_bounds[index], self.row_bounds[index + 1])
        return list(
            zip(self.documents[part].tolist(), self.starts[part].tolist(), self.lengths[part].tolist(), strict=True)
        )


class SourceRows:
    """All rows of one shard set at one context length, for any epoch.

    shards: the set. context: row length, tokens. sentence_ends: shape (vocab_size,), bool, tokens that end a sentence.
    source: index of the set in the blend, part of every random key.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        context: int,
        sentence_ends: np.ndarray,
        window_rows: int,
        group_windows: int,
        seed: int,
        source: int = 0,
    ):
        self.shards, self.context, self.sentence_ends = shards, context, sentence_ends
        self.group_windows, self.seed, self.source = group_windows, seed, source
        self.document_lengths = shards.document_lengths()
        self.window_starts, self.window_rows = plan_windows(self.document_lengths, context, window_rows)
        self.num_rows = int(self.window_rows.sum())  # the same in every epoch
        self._tables: OrderedDict[tuple[int, int], PieceTable] = OrderedDict()
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def row(self, epoch: int, index: int) -> list[tuple[int, int, int]]:
        """Return the pieces (document, start, length) of row `index` (0 <= index < num_rows) of an epoch."""
        order, group_ends = self._epoch_order(epoch)
        group = int(np.searchsorted(group_ends, index, side="right"))
        before = int(group_ends[group - 1]) if group else 0
        windows = order[group * self.group_windows : (group + 1) * self.group_windows]
        ends = np.cumsum(self.window_rows[windows])
        shuffled = generator(self.seed, "rows", self.source, epoch, group).permutation(int(ends[-1]))
        place = int(shuffled[index - before])
        slot = int(np.searchsorted(ends, place, side="right"))
        return self._table(epoch, int(windows[slot])).row(place - (int(ends[slot - 1]) if slot else 0))

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shuffled windows of an epoch, and the number of rows up to the end of each group of them."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = generator(self.seed, "windows", self.source, epoch).permutation(len(self.window_rows))
            firsts = np.arange(0, len(order), self.group_windows)
            self._epoch = (epoch, order, np.cumsum(np.add.reduceat(self.window_rows[order], firsts)))
        return self._epoch[1], self._epoch[2]

    def _table(self, epoch: int, window: int) -> PieceTable:
        key = (epoch, window)
        if key not in self._tables:
            self._tables[key] = self._pack_window(epoch, window)
            if len(self._tables) > 2 * self.group_windows:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def _pack_window(self, epoch: int, window: int) -> PieceTable:
        first, last = self.window_starts[window : window + 2]
        documents = first + generator(self.seed, "documents", self.source, epoch, window).permutation(last - first)
        capacity = self.context - SPECIALS_PER_PIECE
        pieces: list[tuple[int, int, int]] = []
        for document, length in zip(documents.tolist(), self.document_lengths[documents].tolist(), strict=True):
            if length <= capacity:
                pieces.append((document, 0, length))
            else:
                tokens, _ = self.shards.read(document)
                bounds = cut_document(self.sentence_ends[tokens], capacity)
                pieces.extend((document, start, end - start) for start, end in itertools.pairwise(bounds))
        return best_fit(pieces, num_rows=int(self.window_rows[window]), context=self.context)


def plan_windows(lengths: np.ndarray, context: int, window_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split documents into windows and say how many rows each makes, from lengths (tokens, shape (documents,)) alone.

    Returns (window_starts (windows + 1,), rows (windows,)), int64. The row count leaves room for what `best_fit` may
    lose: LOST_PER_ROW positions a row, and the most pieces that `cut_document` can make of a document.
    """
    capacity = context - SPECIALS_PER_PIECE
    shortest_cut = capacity - capacity // CUT_SEARCH_SHARE
    most_pieces = np.where(lengths <= capacity, 1, -(-lengths // shortest_cut))
    cost = lengths + SPECIALS_PER_PIECE * most_pieces
    ends = np.cumsum(cost)
    window_of_document = (ends - cost) // (window_rows * context)
    window_starts = np.flatnonzero(np.diff(window_of_document, prepend=-1))
    window_starts = np.append(window_starts, len(lengths)).astype(np.int64)
    window_cost = np.diff(np.concatenate([[0], ends])[window_starts])
    return window_starts, -(-window_cost // (context - LOST_PER_ROW))


def cut_document(ends_sentence: np.ndarray, capacity: int) -> list[int]:
    """Cut a document longer than `capacity` tokens; return the bounds of its pieces, first 0, last the length.

    ends_sentence: shape (length,), bool. A cut follows the last sentence end in the last eighth of the piece, if any.
    The last piece is at least an eighth of the capacity, so no scrap of a few tokens is left.
    """
    length, search = len(ends_sentence), capacity // CUT_SEARCH_SHARE
    bounds = [0]
    while length - bounds[-1] > capacity:
        start = bounds[-1]
        latest = min(start + capacity, length - search)
        earliest = start + capacity - search
        found = np.flatnonzero(ends_sentence[earliest - 1 : latest])
        bounds.append(earliest + int(found[-1]) if len(found) else latest)
    return [*bounds, length]


def best_fit(pieces: list[tuple[int, int, int]], *, num_rows: int, context: int) -> PieceTable:
    """Place every token of `pieces` (document, start, length) into exactly `num_rows` rows of `context` positions.

    Longest piece first, into the fullest row that still takes it; what fits nowhere is chopped into the widest gaps.
    """
    rows_by_space: list[list[int]] = [[] for _ in range(context + 1)]
    rows_by_space[context] = list(range(num_rows))
    occupied = 1 << context  # bit s: some row has s free positions
    placed: list[tuple[int, int, int, int]] = []  # row, document, start, length

    def put(space: int, document: int, start: int, length: int) -> None:
        nonlocal occupied
        row = rows_by_space[space].pop()
        if not rows_by_space[space]:
            occupied ^= 1 << space
        left = space - length - SPECIALS_PER_PIECE
        rows_by_space[left].append(row)
        occupied |= 1 << left
        placed.append((row, document, start, length))

    leftover = []
    for document, start, length in sorted(pieces, key=lambda piece: -piece[2]):
        fitting = occupied >> (length + SPECIALS_PER_PIECE)
        if fitting:
            put((fitting & -fitting).bit_length() - 1 + length + SPECIALS_PER_PIECE, document, start, length)
        else:
            leftover.append((document, start, length))
    for document, start, length in leftover:
        while length:
            widest = occupied.bit_length() - 1
            part = min(length, widest - SPECIALS_PER_PIECE)
            assert part > 0, "plan_windows left too little room"
            put(widest, document, start, part)
            start, length = start + part, length - part
    table = np.array(sorted(placed, key=lambda piece: piece[0]), dtype=np.int64).reshape(-1, 4)
    row_bounds = np.searchsorted(table[:, 0], np.arange(num_rows + 1))
    return PieceTable(documents=table[:, 1], starts=table[:, 2], lengths=table[:, 3], row_bounds=row_bounds)
