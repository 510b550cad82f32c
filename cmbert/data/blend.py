"""Sources with weights -> one endless sequence of rows, a pure function of sources and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmbert.data.packing import SourceRows

BLOCK_ROWS = 16_384  # ours: the pattern of sources repeats after this many rows; shares are multiples of 1 / BLOCK_ROWS


class RowAddress(NamedTuple):
    """Where a row of the run comes from."""

    source: int
    epoch: int
    row: int


class Phase(NamedTuple):
    """From row `first_row` of the run on, rows come in proportion to `weights`, one per source.

    All weights zero = in proportion to the sources' rows, so that all end together.
    """

    first_row: int
    weights: tuple[float, ...]


class _Pattern(NamedTuple):
    """A phase worked out."""

    first_row: int
    order: np.ndarray  # (BLOCK_ROWS,) source of each row of a block
    nth: np.ndarray  # (BLOCK_ROWS,) how many rows of the same source come before it in the block
    block: np.ndarray  # (sources,) rows of each source in a block
    before: np.ndarray  # (sources,) rows of each source before the phase

    def consumed(self, rows: int) -> np.ndarray:
        """Return how many rows of each source have come once the phase is `rows` rows old, earlier phases included."""
        blocks, rest = divmod(rows, BLOCK_ROWS)
        return self.before + blocks * self.block + np.bincount(self.order[:rest], minlength=len(self.block))


class Blend:
    """Rows of several sources mixed by weight, each source in its own order.

    Sources alternate as evenly as whole rows allow: in any stretch of the run a source is within two rows of its share.
    phases: in order, the first from row 0.
    """

    def __init__(self, sources: Sequence[SourceRows], phases: Sequence[Phase]):
        assert phases[0].first_row == 0
        self.sources = sources
        self.patterns: list[_Pattern] = []
        before = np.zeros(len(sources), np.int64)
        for number, phase in enumerate(phases):
            if number:
                before = self.patterns[-1].consumed(phase.first_row - phases[number - 1].first_row)
            self.patterns.append(self._pattern(phase, before))

    def _pattern(self, phase: Phase, before: np.ndarray) -> _Pattern:
        sizes = [source.num_rows for source in self.sources]
        shares = np.array(phase.weights if any(phase.weights) else sizes, dtype=np.float64)
        block = apportion(shares / shares.sum(), BLOCK_ROWS)
        order = alternate(block)
        nth = np.empty(BLOCK_ROWS, np.int64)
        for source in range(len(block)):
            here = order == source
            nth[here] = np.arange(np.count_nonzero(here))
        return _Pattern(phase.first_row, order, nth, block, before)

    def _pattern_at(self, row: int) -> _Pattern:
        return next(pattern for pattern in reversed(self.patterns) if pattern.first_row <= row)

    def address(self, row: int) -> RowAddress:
        """Return source, epoch and row in that epoch of the run's row number `row`."""
        pattern = self._pattern_at(row)
        block, place = divmod(row - pattern.first_row, BLOCK_ROWS)
        source = int(pattern.order[place])
        nth = int(pattern.before[source]) + block * int(pattern.block[source]) + int(pattern.nth[place])
        return RowAddress(source, *divmod(nth, self.sources[source].num_rows))

    def epochs(self, num_rows: int) -> list[float]:
        """Return how often a run of `num_rows` rows passes over each source."""
        pattern = self._pattern_at(num_rows)
        consumed = pattern.consumed(num_rows - pattern.first_row)
        return [float(count / source.num_rows) for count, source in zip(consumed, self.sources, strict=True)]


def alternate(counts: np.ndarray) -> np.ndarray:
    """Return a sequence with `counts[s]` times s, spread so that every start of it holds each within one of its share.

    Every occurrence has a place where it would ideally stand; they are sorted by it (Webster's method).
    """
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    source = np.repeat(np.arange(len(counts)), counts)
    return source[np.argsort(ideal, kind="stable")]


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Split `total` into integers in proportion to `shares` (largest remainders), shape and order of `shares`."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
    return counts
