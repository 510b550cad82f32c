"""Best fit: which documents share a row. Compiled; nothing here draws at random."""

import numpy as np

from cmbert.data.kernels import ONE, compiled
from cmbert.tokenizer import SPECIALS_PER_SEGMENT


@compiled
def best_fit(lengths: np.ndarray, num_rows: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Put segments, longest first, each into the row with the least room that holds it.

    lengths: (segments,) int64, descending, tokens without specials. Returns row, segment, its first token
    and length of what was placed, int64 each, in the order of placing. A segment that fits nowhere is chopped into the
    widest gaps at the end. Needs enough rows: see `cmbert.data.packing.plan_blocks`.
    """
    num_segments = len(lengths)
    rows, segments = np.empty(2 * num_segments + num_rows, np.int64), np.empty(2 * num_segments + num_rows, np.int64)
    starts, placed = np.zeros(2 * num_segments + num_rows, np.int64), np.empty(2 * num_segments + num_rows, np.int64)
    first_row = np.full(context + 1, -1, np.int64)  # rows by free positions, a stack for each
    next_row = np.empty(num_rows, np.int64)
    words = np.zeros(context // 64 + 1, np.uint64)  # bit s: some row has s free positions
    for row in range(num_rows):
        next_row[row] = first_row[context]
        first_row[context] = row
    words[context // 64] |= ONE << np.uint64(context % 64)
    left_over = np.empty(num_segments, np.int64)
    num_left = count = 0
    for segment in range(num_segments):
        space = _least_space(words, lengths[segment] + SPECIALS_PER_SEGMENT)
        if space < 0:
            left_over[num_left] = segment
            num_left += 1
            continue
        rows[count] = _take_space(first_row, next_row, words, space, lengths[segment])
        segments[count], placed[count] = segment, lengths[segment]
        count += 1
    for segment in left_over[:num_left]:
        start, length = 0, lengths[segment]
        while length > 0:
            space = _most_space(words)
            part = min(length, space - SPECIALS_PER_SEGMENT)
            assert part > 0, "plan_blocks left too little room"
            rows[count] = _take_space(first_row, next_row, words, space, part)
            segments[count], starts[count], placed[count] = segment, start, part
            start, length, count = start + part, length - part, count + 1
    return rows[:count], segments[:count], starts[:count], placed[:count]


@compiled
def _take_space(first_row: np.ndarray, next_row: np.ndarray, words: np.ndarray, space: int, length: int) -> int:
    """Move a row from its stack to that of what it has left once `length` tokens are in it; return the row."""
    row = first_row[space]
    first_row[space] = next_row[row]
    if first_row[space] < 0:
        words[space // 64] &= ~(ONE << np.uint64(space % 64))
    left = space - length - SPECIALS_PER_SEGMENT
    next_row[row] = first_row[left]
    first_row[left] = row
    words[left // 64] |= ONE << np.uint64(left % 64)
    return row


@compiled
def _least_space(words: np.ndarray, needed: int) -> int:
    """The smallest set bit from `needed` on, or -1."""
    index = needed // 64
    if index >= len(words):
        return -1
    word = words[index] >> np.uint64(needed % 64) << np.uint64(needed % 64)
    while word == 0:
        index += 1
        if index == len(words):
            return -1
        word = words[index]
    bit = 0
    while (word >> np.uint64(bit)) & np.uint64(0xFF) == 0:
        bit += 8
    while (word >> np.uint64(bit)) & ONE == 0:
        bit += 1
    return index * 64 + bit


@compiled
def _most_space(words: np.ndarray) -> int:
    """The largest set bit, or -1."""
    for index in range(len(words) - 1, -1, -1):
        if words[index] != 0:
            bit = 63
            while (words[index] >> np.uint64(bit)) & ONE == 0:
                bit -= 1
            return index * 64 + bit
    return -1
