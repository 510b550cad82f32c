"""Equal work for the micro-batches of a step."""

import heapq
from collections.abc import Sequence


def deal(work: Sequence[int], num_hands: int) -> list[list[int]]:
    """Deal items of the given work to hands of equal size: the heaviest left to the hand with the least work."""
    size, left = divmod(len(work), num_hands)
    assert not left
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    lightest = [(0, hand) for hand in range(num_hands)]  # a heap
    for item in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        load, hand = heapq.heappop(lightest)
        hands[hand].append(item)
        if len(hands[hand]) < size:
            heapq.heappush(lightest, (load + work[item], hand))
    return hands
