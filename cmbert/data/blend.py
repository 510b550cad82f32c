"""Sources with weights -> one endless sequence of rows, a pure function of (sources, weights, seed)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmbert.data.packing import SourceRows
from cmbert.seeding import generator

BLOCK_ROWS = 4096  # ours: every block of this many rows holds each source's share exactly, to within one row


class RowAddress(NamedTuple):
    """Where a row of the run comes from."""

    source: int
    epoch: int
    row: int


class Blend:
    """Rows of several sources mixed by weight.

    weights: shares of the rows, normalised here; all zero = in proportion to the rows, so that all end together.
    """

    def __init__(self, sources: Sequence[SourceRows], weights: Sequence[float], seed: int):
        self.sources, self.seed = sources, seed
        shares = np.array([s.num_rows for s in sources] if not any(weights) else weights, dtype=np.float64)
        self.shares = shares / shares.sum()
        self.block = apportion(self.shares, BLOCK_ROWS)
        self._order: tuple[int, np.ndarray] | None = None

    def address(self, row: int) -> RowAddress:
        """Return source, epoch and row in that epoch of the run's row number `row`."""
        block, place = divmod(row, BLOCK_ROWS)
        if self._order is None or self._order[0] != block:
            order = np.repeat(np.arange(len(self.block)), self.block)
            self._order = (block, generator(self.seed, "blend", block).permutation(order))
        order = self._order[1]
        source = int(order[place])
        nth = block * int(self.block[source]) + int(np.count_nonzero(order[:place] == source))
        return RowAddress(source, *divmod(nth, self.sources[source].num_rows))

    def epochs(self, num_rows: int) -> list[float]:
        """Return how often a run of `num_rows` rows passes over each source."""
        return [
            num_rows * count / BLOCK_ROWS / source.num_rows
            for count, source in zip(self.block, self.sources, strict=True)
        ]


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Split `total` into integers in proportion to `shares` (largest remainders), shape and order of `shares`."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
    return counts
