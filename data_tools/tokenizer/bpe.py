"""Byte-pair encoding learnt from counted units, in bounded memory: the merges of `tokenizers`' BpeTrainer, exactly.

That trainer needs 60 times the text's size on Chinese, whose units are whole clauses (huggingface/tokenizers#1395).
Here a unit is held once, with a 64-bit count; a pair of symbols knows where it stands; a merge is a few numpy
operations on those places. Source of the algorithm: Sennrich et al., arXiv 1508.07909.

Shapes: N symbols of all units laid back to back, M places of one merge, K units.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NONE = -1  # no neighbour: the edge of a unit
SYMBOL_BITS = 20  # of a pair's key: up to a million symbols
COUNT_CEILING = 1 << 62


class Merge(NamedTuple):
    """The pair `left`, `right` becomes `symbol`."""

    left: int
    right: int
    symbol: int


def learn_merges(
    units: Sequence[bytes],
    counts: np.ndarray,
    byte_ranks: np.ndarray,
    *,
    num_symbols: int,
    min_count: int,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Merge]:
    """Yield merges, most frequent pair first, until there are `num_symbols` symbols or no pair is left.

    units: distinct, not empty. counts: of each unit, shape (K,), int64. byte_ranks: symbol of every byte, shape (256,),
    a permutation of 0 to 255; on equal counts the pair of smaller symbols comes first. min_count: a rarer pair is none.
    advance: called for every symbol made.
    """
    lengths = np.fromiter(map(len, units), dtype=np.int64, count=len(units))
    text = _Text(byte_ranks[np.frombuffer(b"".join(units), dtype=np.uint8)].astype(np.int32), lengths, counts)
    pairs = _Pairs(min_count)
    pairs.add_all(text)
    symbols: list[tuple[int, ...]] = [(rank,) for rank in range(256)]
    spellings = {spelling: symbol for symbol, spelling in enumerate(symbols)}
    while len(symbols) < num_symbols and (top := pairs.pop()):
        left, right = top
        spelling = symbols[left] + symbols[right]
        symbol = spellings.setdefault(spelling, len(symbols))  # another pair may have spelt the same before
        if symbol == len(symbols):
            symbols.append(spelling)
            advance()
        text.merge(left, right, symbol, pairs.take(left, right), pairs)
        yield Merge(left, right, symbol)


def extend_merges(
    symbols: np.ndarray,
    lengths: np.ndarray,
    counts: np.ndarray,
    *,
    first: int,
    num_merges: int,
    min_count: int,
    is_taken: Callable[[int, int], bool],
) -> Iterator[tuple[Merge, int]]:
    """Go on from units that are made of `first` symbols: yield at most `num_merges`, each with the symbols it saves.

    symbols: of all units back to back, shape (N,), int32; changed in place. lengths: of each unit, shape (K,), int64,
    not 0. counts, min_count: as above, and so is the order. is_taken: whether a pair must stay two symbols, because
    something else is spelt as it would be.
    """
    assert first + num_merges <= 1 << SYMBOL_BITS, "a pair of larger symbols has no key"
    text, pairs = _Text(symbols, lengths, counts), _Pairs(min_count)
    pairs.add_all(text)
    symbol = first
    while symbol < first + num_merges and (top := pairs.pop()):
        places = pairs.take(*top)
        if not is_taken(*top):
            yield Merge(*top, symbol), text.merge(*top, symbol, places, pairs)
            symbol += 1


class _Text:
    """All units as linked lists of symbols."""

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray, counts: np.ndarray):
        assert lengths.sum() < 2**31, "places are 32-bit numbers; take a smaller sample"
        ends = np.cumsum(lengths)
        self.counts = counts
        self.symbol = symbols  # (N,), NONE = merged
        self.unit = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)  # (N,)
        self.next = np.arange(1, len(self.symbol) + 1, dtype=np.int32)  # (N,), place of the next symbol
        self.next[ends - 1] = NONE
        self.previous = np.arange(-1, len(self.symbol) - 1, dtype=np.int32)  # (N,)
        self.previous[ends - lengths] = NONE

    def merge(self, left: int, right: int, symbol: int, places: np.ndarray, pairs: "_Pairs") -> int:
        """Replace the pair at `places` (M,), as far as it still stands there, and tell `pairs` what came and went.

        Returns how often it was replaced.
        """
        first, second = self._standing(left, right, places)
        before, after = self.previous[first], self.next[second]
        weight = self.counts[self.unit[first]]
        # In ABAB the pair BA goes once, and the two new symbols become neighbours.
        meets_last = np.zeros(len(first), dtype=bool)
        meets_last[1:] = before[1:] == second[:-1]
        meets_next = np.zeros(len(first), dtype=bool)
        meets_next[:-1] = meets_last[1:]

        here = (before != NONE) & ~meets_last
        outer = self.symbol[before[here]]
        pairs.change(outer, weight[here], before[here], gone=lambda s: (s, left), come=lambda s: (s, symbol))
        here = (after != NONE) & ~meets_next
        outer = self.symbol[after[here]]
        pairs.change(outer, weight[here], first[here], gone=lambda s: (right, s), come=lambda s: (symbol, s))
        if meets_next.any():
            outer = np.zeros(int(meets_next.sum()), dtype=np.int32)
            pairs.change(
                outer, weight[meets_next], first[meets_next], lambda _: (right, left), lambda _: (symbol, symbol)
            )

        self.symbol[first], self.symbol[second] = symbol, NONE
        self.next[first] = after
        inner = after != NONE
        self.previous[after[inner]] = first[inner]
        return int(weight.sum())

    def _standing(self, left: int, right: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of both symbols where the pair still stands; in AAA only the first of two that overlap."""
        second = self.next[places]
        stands = (self.symbol[places] == left) & (second != NONE)
        stands &= self.symbol[second] == right
        first, second = places[stands], second[stands]
        if left == right and len(first):
            index = np.arange(len(first))
            starts_run = np.ones(len(first), dtype=bool)
            starts_run[1:] = second[:-1] != first[1:]
            in_run = index - np.maximum.accumulate(np.where(starts_run, index, 0))
            first, second = first[in_run % 2 == 0], second[in_run % 2 == 0]
        return first, second


class _Pairs:
    """Which pairs there are, how often, and where. Those below `min_count` are forgotten: counts only fall."""

    def __init__(self, min_count: int):
        self.min_count = max(min_count, 1)
        self.counts: dict[int, int] = {}
        self.places: dict[int, np.ndarray] = {}
        self.heap: list[int] = []  # (COUNT_CEILING - count, pair) as one number; counts may be out of date

    def add_all(self, text: _Text) -> None:
        """Count the pairs of symbols, those of bytes with less memory."""
        places = np.flatnonzero(text.next != NONE).astype(np.int32)
        if text.symbol.max(initial=0) > 255:
            self._add_wide(text, places)
            return
        keys = (text.symbol[places] * 256 + text.symbol[places + 1]).astype(np.uint16)
        sizes = np.bincount(keys, minlength=1 << 16)
        places = places[np.argsort(keys, kind="stable")]
        del keys
        for pair in np.flatnonzero(sizes).tolist():
            part, places = np.split(places, [int(sizes[pair])])
            self._add(_key(*divmod(pair, 256)), int(text.counts[text.unit[part]].sum()), part)

    def _add_wide(self, text: _Text, places: np.ndarray) -> None:
        keys = text.symbol[places].astype(np.int64) << SYMBOL_BITS | text.symbol[places + 1]
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        totals = np.add.reduceat(text.counts[text.unit[places]], starts) if len(starts) else starts
        ends = np.append(starts[1:], len(keys))
        for pair in np.flatnonzero(totals >= self.min_count).tolist():
            self._add(int(keys[starts[pair]]), int(totals[pair]), places[starts[pair] : ends[pair]])

    def change(
        self,
        outer: np.ndarray,
        weight: np.ndarray,
        places: np.ndarray,
        gone: Callable[[int], tuple[int, int]],
        come: Callable[[int], tuple[int, int]],
    ) -> None:
        """For each symbol of `outer` (M,), lower the pair `gone(symbol)`, add the pair `come(symbol)` at `places`."""
        if not len(outer):
            return
        order = np.argsort(outer, kind="stable")
        outer, weight, places = outer[order], weight[order], places[order]
        starts = np.flatnonzero(np.diff(outer, prepend=-1))
        totals = np.add.reduceat(weight, starts)
        ends = [*starts[1:].tolist(), len(outer)]
        for symbol, total, start, end in zip(
            outer[starts].tolist(), totals.tolist(), starts.tolist(), ends, strict=True
        ):
            old = _key(*gone(symbol))
            if old in self.counts:
                self.counts[old] -= total
                if self.counts[old] < self.min_count:
                    self.take_key(old)
            self._add(_key(*come(symbol)), total, places[start:end])

    def _add(self, key: int, count: int, places: np.ndarray) -> None:
        if key in self.counts:  # only where two pairs spell the same symbol
            count += self.counts[key]
            places = np.sort(np.concatenate([self.places[key], places]))
        if count >= self.min_count:
            self.counts[key], self.places[key] = count, places.copy()  # not a view that keeps a large array alive
            heapq.heappush(self.heap, (COUNT_CEILING - count) << (2 * SYMBOL_BITS) | key)

    def pop(self) -> tuple[int, int] | None:
        """Return the most frequent pair, or None."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            key = entry & ((1 << (2 * SYMBOL_BITS)) - 1)
            said = COUNT_CEILING - (entry >> (2 * SYMBOL_BITS))
            count = self.counts.get(key, 0)
            if count == said:
                return key >> SYMBOL_BITS, key & ((1 << SYMBOL_BITS) - 1)
            if count:
                heapq.heappush(self.heap, (COUNT_CEILING - count) << (2 * SYMBOL_BITS) | key)
        return None

    def take(self, left: int, right: int) -> np.ndarray:
        """Forget a pair and return its places."""
        return self.take_key(_key(left, right))

    def take_key(self, key: int) -> np.ndarray:
        """Likewise by its key."""
        del self.counts[key]
        return self.places.pop(key)


def _key(left: int, right: int) -> int:
    return left << SYMBOL_BITS | right
