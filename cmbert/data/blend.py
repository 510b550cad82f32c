"""Sources with weights -> one endless sequence of rows, a pure function of sources and weights."""

import math
from bisect import bisect
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from cmbert.data.packing import SourceRows

CHUNK_ROWS = 65_536  # rows whose sources are worked out at a time: 0.8 MB, about a millisecond
MOST_PERIOD_ROWS = 1 << 52  # no run is as long, and twice that still fits 64 bits; longer periods are rounded


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


class Turns:
    """Whose turn it is: row n of a phase, for n from 0 on, in exact proportion to the shares.

    With share w / W, row j of a source (j = 0, 1, ...) has its place in [floor(j W / w), ceil((j + 1) W / w)); of the
    sources that may come, the one comes whose place ends first. So every start of the sequence holds each source within
    less than one row of its share, and every stretch within less than two, whatever the shares (Tijdeman, "The chairman
    assignment problem", 1980; Baruah et al., "Proportionate progress", 1996). It repeats after W rows. What is to come
    follows from how many rows of each source have come, so it is worked out from the nearest row where that is known:
    in order, or from a checkpoint on, some 5 ns a row and source; else once in a process from the start of the phase.
    """

    def __init__(self, shares: Sequence[float]):
        self.weights = whole_numbers(shares)
        self.period = sum(self.weights)
        self._known = [0]  # rows of the period before which it is known how many rows of each source have come
        self._counts = [[0] * len(self.weights)]
        self._chunk: tuple[int, np.ndarray, np.ndarray] = (0, np.zeros(0, np.int32), np.zeros(0, np.int64))

    def __getstate__(self) -> dict:
        """Loader processes work out their own chunks."""
        return {**self.__dict__, "_chunk": (0, np.zeros(0, np.int32), np.zeros(0, np.int64))}

    def at(self, row: int) -> tuple[int, int]:
        """Return the source of row `row` of the phase, and how many rows of that source come before it."""
        periods, place = divmod(row, self.period)
        first, sources, nth = self._read(place)
        source = int(sources[place - first])
        return source, periods * self.weights[source] + int(nth[place - first])

    def counts(self, rows: int) -> list[int]:
        """Return how many of the first `rows` rows are of each source."""
        periods, place = divmod(rows, self.period)
        first, sources, _ = self._read(place)
        here = np.bincount(sources[: place - first], minlength=len(self.weights)).tolist()
        before = _add(self._counts[self._known.index(first)], here)
        return [periods * weight + count for weight, count in zip(self.weights, before, strict=True)]

    def learn(self, rows: int, counts: Sequence[int]) -> bool:
        """Take from elsewhere how many of the first `rows` rows are of each source; False if that cannot be."""
        periods, place = divmod(rows, self.period)
        counts = [count - periods * weight for count, weight in zip(counts, self.weights, strict=True)]
        ahead = [count * self.period - place * weight for count, weight in zip(counts, self.weights, strict=True)]
        if sum(counts) != place or max(map(abs, ahead)) >= self.period:
            return False
        if place not in self._known:
            self._keep(place, counts)
        return True

    def _keep(self, place: int, counts: list[int]) -> None:
        index = bisect(self._known, place)
        self._known.insert(index, place)
        self._counts.insert(index, counts)

    def _read(self, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the first row of a chunk of the period that holds row `place`, and of each row source and number."""
        first, sources, _ = self._chunk
        while not first <= place < first + len(sources):
            index = bisect(self._known, place) - 1
            first, end = self._known[index], (*self._known[index + 1 : index + 2], self.period)[0]
            sources, nth, after = self._work_out(first, min(end - first, CHUNK_ROWS), self._counts[index])
            self._chunk = (first, sources, nth)
            if first + len(sources) < end:
                self._keep(first + len(sources), after)
        return self._chunk

    def _work_out(self, first: int, rows: int, before: list[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        if self.period == 1:  # one source, which needs no numba
            return np.full(1, self.weights.index(1), np.int32), np.zeros(1, np.int64), before
        from cmbert.data.kernels import take_turns  # numba takes its time, and who only counts rows needs none

        state = np.zeros((4, len(before)), np.int64)
        for source, (count, weight) in enumerate(zip(before, self.weights, strict=True)):
            if weight:
                opens, (closes, rest) = count * self.period // weight, divmod((count + 1) * self.period, weight)
                state[:, source] = count, opens, closes, rest
        sources, nth = np.empty(rows, np.int32), np.empty(rows, np.int64)
        take_turns(np.array(self.weights), self.period, first, state, sources, nth)
        return sources, nth, state[0].tolist()


class Blend:
    """Rows of several sources mixed by weight, each source in its own order.

    Sources alternate as evenly as whole rows allow: in any stretch of a phase a source is within two rows of its share.
    phases: in order, the first from row 0.
    """

    def __init__(self, sources: Sequence[SourceRows], phases: Sequence[Phase]):
        assert phases[0].first_row == 0
        self.sources = sources
        sizes = [source.num_rows for source in sources]
        self._all_first_rows = [phase.first_row for phase in phases]
        self._all_turns = [Turns(phase.weights if any(phase.weights) else sizes) for phase in phases]
        self.begin_at([0] * len(sources))

    def begin_at(self, rows: Sequence[int], first_row: int = 0) -> None:
        """Begin each source at this number of its rows, where an earlier stage ended, or a branch's parent stood.

        first_row: the run's row that comes first, with which the turns of the phase in force begin anew.
        """
        begun = bisect(self._all_first_rows, first_row)
        self.first_rows = [first_row, *self._all_first_rows[begun:]]
        self.turns = self._all_turns[begun - 1 :]
        self.begins = list(rows)
        self._before = [self.begins]  # rows of each source before each phase, as far as asked for

    def go_on(self, num_rows: int, source_rows: Sequence[int], first_rows: Sequence[int], first_row: int = 0) -> bool:
        """Continue as a checkpoint of `num_rows` rows says, which may lack either list; False if another blend's."""
        self.begin_at(first_rows or [0] * len(self.sources), first_row)
        return not source_rows or self.learn(num_rows, source_rows)

    def learn(self, num_rows: int, source_rows: Sequence[int]) -> bool:
        """Take from a checkpoint what `consumed` gave after `num_rows` rows; False if another blend gave it.

        What comes later need then not be worked out from the beginning.
        """
        if len(source_rows) != len(self.sources):
            return False
        if bisect(self.first_rows, num_rows) > 1:  # the phases before are to be counted anyway
            return self.consumed(num_rows) == [*source_rows]
        rows = num_rows - self.first_rows[0]
        return self.turns[0].learn(rows, [row - b for row, b in zip(source_rows, self._before[0], strict=True)])

    def _before_phase(self, number: int) -> list[int]:
        while len(self._before) <= number:
            last = len(self._before) - 1
            length = self.first_rows[last + 1] - self.first_rows[last]
            self._before.append(_add(self._before[last], self.turns[last].counts(length)))
        return self._before[number]

    def address(self, row: int) -> RowAddress:
        """Return source, epoch and row in that epoch of the run's row number `row`."""
        phase = bisect(self.first_rows, row) - 1
        source, nth = self.turns[phase].at(row - self.first_rows[phase])
        return RowAddress(source, *divmod(self._before_phase(phase)[source] + nth, self.sources[source].num_rows))

    def consumed(self, num_rows: int) -> list[int]:
        """Return at which of its rows each source is after the first `num_rows` rows of the run."""
        phase = bisect(self.first_rows, num_rows) - 1
        return _add(self._before_phase(phase), self.turns[phase].counts(num_rows - self.first_rows[phase]))

    def shares(self, num_rows: int) -> list[Fraction]:
        """Return how many of the first `num_rows` rows each source should get; in each phase it does within one row.

        Of a blend that does not begin with row 0: how many of those from its first on.
        """
        total = [Fraction(0)] * len(self.sources)
        for first, last, turns in zip(self.first_rows, [*self.first_rows[1:], num_rows], self.turns, strict=True):
            rows = min(last, num_rows) - min(first, num_rows)
            total = [t + Fraction(rows * w, turns.period) for t, w in zip(total, turns.weights, strict=True)]
        return total

    def epochs(self, num_rows: int) -> list[float]:
        """Return how often a run of `num_rows` rows passes over each source, a branch together with its parent."""
        before = self.begins if self.first_rows[0] else [0] * len(self.sources)
        read = zip(self.shares(num_rows), before, self.sources, strict=True)
        return [float((share + rows) / source.num_rows) for share, rows, source in read]


def _add(some: Sequence[int], others: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(some, others, strict=True)]


def whole_numbers(shares: Sequence[float]) -> list[int]:
    """Return the smallest integers in the proportion of `shares`, decimals taken as they are written.

    If their sum would pass MOST_PERIOD_ROWS they are rounded to about that sum, none to zero.
    """
    exact = [Fraction(str(share)) for share in shares]
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    if (total := sum(whole)) > MOST_PERIOD_ROWS:
        whole = [max(number * MOST_PERIOD_ROWS // total, 1) if number else 0 for number in whole]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]
