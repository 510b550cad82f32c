"""Equal cost for the micro-batches of a step."""

import heapq
from collections.abc import Sequence


def balance(costs: Sequence[int], num_bins: int) -> list[list[int]]:
    """Put items of the given costs into bins of equal size: the dearest left into the bin that has cost least."""
    size, left = divmod(len(costs), num_bins)
    assert not left
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    lightest = [(0, bin_) for bin_ in range(num_bins)]  # a heap
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, bin_ = heapq.heappop(lightest)
        bins[bin_].append(item)
        if len(bins[bin_]) < size:
            heapq.heappush(lightest, (load + costs[item], bin_))
    return bins
