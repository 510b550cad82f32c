"""The loops over tokens, compiled. Plain arrays in, plain arrays out, no state."""

import numpy as np

from cmbert.machine.compiled import compiled

MASKED, REPLACED, KEPT = 1, 2, 3  # what becomes of a chosen token

# Philox4x64-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405); the numbers are numpy.random.Philox's.
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)

_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)

_ROUNDS = 10

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

_SHIFT_53, _TO_UNIT = np.uint64(11), 1.0 / (1 << 53)

ONE = np.uint64(1)


@compiled
def _multiply_high(a: np.uint64, b: np.uint64) -> np.uint64:
    """Upper half of the 128-bit product."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF)


@compiled
def _refill(stream: np.ndarray) -> None:
    """Next four numbers of a stream: [0:4] counter, [4:6] key, [6:10] numbers, [10] how many of them are used."""
    for word in range(4):  # the counter is one number of 256 bits
        stream[word] += ONE
        if stream[word] != 0:
            break
    c0, c1, c2, c3 = stream[0], stream[1], stream[2], stream[3]
    k0, k1 = stream[4], stream[5]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high(_MULTIPLIER_0, c0), _MULTIPLIER_0 * c0
        high1, low1 = _multiply_high(_MULTIPLIER_1, c2), _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL_0, k1 + _WEYL_1
    stream[6], stream[7], stream[8], stream[9], stream[10] = c0, c1, c2, c3, np.uint64(0)


@compiled
def _draw(stream: np.ndarray) -> np.uint64:
    if stream[10] == np.uint64(4):
        _refill(stream)
    number = stream[6 + np.int64(stream[10])]
    stream[10] += ONE
    return number


@compiled
def _below(stream: np.ndarray, limit: int) -> int:
    """A number in [0, limit); the bias of multiplying instead of rejecting is below limit / 2^32."""
    return np.int64(((_draw(stream) >> _HALF) * np.uint64(limit)) >> _HALF)  # type: ignore[return-value]


@compiled
def _uniform(stream: np.ndarray) -> float:
    return (_draw(stream) >> _SHIFT_53) * _TO_UNIT


@compiled
def random_numbers(key: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """The first `count` numbers of stream `key` (2,) uint64 at `index` (3,) uint64, as (count,) uint64; for tests."""
    stream = _open_stream(key, index)
    numbers = np.empty(count, np.uint64)
    for i in range(count):
        numbers[i] = _draw(stream)
    return numbers


@compiled
def _open_stream(key: np.ndarray, index: np.ndarray) -> np.ndarray:
    stream = np.zeros(11, np.uint64)
    stream[1], stream[2], stream[3] = index[0], index[1], index[2]
    stream[4], stream[5], stream[10] = key[0], key[1], np.uint64(4)
    return stream


@compiled
def cut_document(tokens: np.ndarray, sentence_ends: np.ndarray, capacity: int, search: int) -> np.ndarray:
    """Bounds of the segments of a document longer than `capacity`: int64, first 0, last the length.

    tokens: (length,) ids. sentence_ends: (vocab_size,) bool. A cut follows the last sentence end among the last
    `search` tokens of the segment, if any. The last segment has at least `search` tokens: no scrap is left.
    """
    length = len(tokens)
    bounds = np.empty(length // max(capacity - search, 1) + 2, np.int64)
    bounds[0] = 0
    count = 1
    while length - bounds[count - 1] > capacity:
        start = bounds[count - 1]
        latest = min(start + capacity, length - search)
        earliest = start + capacity - search
        cut = latest
        for place in range(latest, earliest - 1, -1):
            if sentence_ends[tokens[place - 1]]:
                cut = place
                break
        bounds[count] = cut
        count += 1
    bounds[count] = length
    return bounds[: count + 1]


@compiled
def take_turns(
    weights: np.ndarray, period: int, first_row: int, state: np.ndarray, sources: np.ndarray, nth: np.ndarray
) -> None:
    """Say whose turn each of the rows from `first_row` on is: of the sources that may come, whose place ends first.

    weights: (S,) int64, adding up to `period`. state: (4, S) int64, of each source the rows so far, from which row on
    the next may come, and period x (rows so far + 1) / weight as quotient and remainder; changed in place. sources,
    nth: (rows,), filled.
    """
    whole, rest = np.zeros_like(weights), np.zeros_like(weights)
    for source in range(len(weights)):
        if weights[source]:
            whole[source], rest[source] = divmod(period, weights[source])
    for index in range(len(sources)):
        row, chosen, chosen_end = first_row + index, -1, 0
        for source in range(len(weights)):
            if weights[source] and state[1, source] <= row:
                end = state[2, source] + (state[3, source] > 0)
                if chosen < 0 or end < chosen_end:
                    chosen, chosen_end = source, end
        sources[index], nth[index] = chosen, state[0, chosen]
        state[0, chosen] += 1
        state[1, chosen] = state[2, chosen]
        state[2, chosen] += whole[chosen]
        state[3, chosen] += rest[chosen]
        if state[3, chosen] >= weights[chosen]:
            state[3, chosen] -= weights[chosen]
            state[2, chosen] += 1


@compiled
def frame_segments(
    tokens: np.ndarray, words: np.ndarray, firsts: np.ndarray, lengths: np.ndarray, places: np.ndarray,
    ids: np.ndarray, unit_starts: np.ndarray, cls_id: int, sep_id: int,
) -> None:  # fmt: skip
    """Write `[CLS] tokens [SEP]` of every segment into a batch, and where units begin.

    tokens: a shard's ids. words: its unit bits, or empty for one unit per token. firsts: (segments,) first token of
    each in the shard. places: (segments,) where each begins in ids (T,) int64 and unit_starts (T,) bool, both written.
    """
    for segment in range(len(firsts)):
        place, first, length = places[segment], firsts[segment], lengths[segment]
        ids[place], ids[place + length + 1] = cls_id, sep_id
        unit_starts[place] = unit_starts[place + length + 1] = True
        for i in range(length):
            ids[place + 1 + i] = tokens[first + i]
        if len(words) == 0:
            unit_starts[place + 1 : place + 1 + length] = True
        else:
            for i in range(length):
                bit = first + i
                unit_starts[place + 1 + i] = (words[bit >> 3] >> (bit & 7)) & 1
            unit_starts[place + 1] = True  # a segment may have been cut inside a unit


@compiled
def mask_rows(
    ids: np.ndarray, unit_starts: np.ndarray, row_bounds: np.ndarray, key: np.ndarray, index: np.ndarray,
    rate: float, mask_prob: float, random_prob: float, mask_id: int, is_ordinary: np.ndarray, ordinary: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mask whole units of every row of a batch; return (positions, targets), int64, positions ascending.

    ids: (T,) int64, changed in place. unit_starts: (T,) bool. row_bounds: (rows + 1,) int64. key: (2,) uint64 and
    index: (rows, 3) uint64 name the random stream of each row. rate: share of the row's ordinary tokens to predict.
    is_ordinary: (V,) bool and ordinary: (O,) int64, the ids that are, as a table and listed; no others are chosen.
    Units come in random order until the row's budget is spent; a unit longer than what is left is passed over. The
    fraction of a token in the budget is rounded at random, so that the rate is right on average for rows of any length.
    80/10/10 is drawn once per unit.
    """
    positions, targets = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
    fate, others = np.zeros(len(ids), np.uint8), np.empty(len(ids), np.int64)
    firsts = np.empty(len(ids), np.int64)  # of the row's units
    for row in range(len(row_bounds) - 1):
        start, end = row_bounds[row], row_bounds[row + 1]
        stream = _open_stream(key, index[row])
        num_units = num_tokens = 0
        for place in range(start, end):
            if is_ordinary[ids[place]]:
                num_tokens += 1
                if unit_starts[place] or not is_ordinary[ids[place - 1]]:
                    firsts[num_units] = place
                    num_units += 1
        left = int(rate * num_tokens + _uniform(stream))
        for drawn in range(num_units):
            if left == 0:
                break
            other = drawn + _below(stream, num_units - drawn)
            first = firsts[other]
            firsts[other] = firsts[drawn]
            last = first + 1
            while last < end and is_ordinary[ids[last]] and not unit_starts[last]:
                last += 1
            if last - first > left:
                continue
            left -= last - first
            share = _uniform(stream)
            kind = MASKED if share < mask_prob else (REPLACED if share < mask_prob + random_prob else KEPT)
            for place in range(first, last):
                fate[place] = kind
                if kind == REPLACED:
                    others[place] = ordinary[_below(stream, len(ordinary))]
    count = 0
    for place in range(len(ids)):
        if fate[place] != 0:
            positions[count], targets[count] = place, ids[place]
            count += 1
            if fate[place] == MASKED:
                ids[place] = mask_id
            elif fate[place] == REPLACED:
                ids[place] = others[place]
    return positions[:count].copy(), targets[:count].copy()
