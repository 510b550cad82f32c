"""Masks: rate, whole units, never specials, 80/10/10 per unit, numpy's Philox, a naive reference."""

from collections.abc import Iterator

import numpy as np
import pytest

from cmbert.config.schema import MaskConfig
from cmbert.data.kernels import random_numbers
from cmbert.data.masking import mask_batch
from cmbert.seeding import stream_key
from tests.own_ids import CLS_ID, MASK_ID, NUM_SPECIAL_TOKENS, SEP_ID, own_vocabulary

VOCAB_SIZE = 1000
OWN = own_vocabulary(VOCAB_SIZE)
LENGTH = 1024


def make_row(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A row of several segments: tokens 500..999, units of 1 to 4 tokens; ids and where units begin."""
    random = np.random.default_rng(index)
    tokens = random.integers(500, VOCAB_SIZE, LENGTH)
    starts = random.random(LENGTH) < 0.6
    bounds = np.sort(random.choice(np.arange(1, LENGTH // 8) * 8, 5, replace=False))
    for first, last in zip([0, *bounds], [*bounds, LENGTH], strict=True):
        tokens[first], tokens[last - 1] = CLS_ID, SEP_ID
        starts[first + 1] = True
    return tokens, starts


def masked(
    index: int, rate: float, config: MaskConfig | None = None, seed: int = 0, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask one row: (ids, positions, targets)."""
    ids, starts = make_row(index)
    positions, targets = mask_batch(
        ids, starts, np.array([0, LENGTH]),
        rate=rate, config=config or MaskConfig(), vocabulary=OWN, seed=seed, indexes=[(0, epoch, index)],
    )  # fmt: skip
    return ids, positions, targets


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("index", [(0, 0, 0), (3, 1, 2**40), (2**63, 5, 9)])
def test_random_numbers_are_numpys_philox(seed: int, index: tuple[int, int, int]) -> None:
    key = stream_key(seed, "mask")
    words = np.array([key & (2**64 - 1), key >> 64], dtype=np.uint64)
    found = random_numbers(words, np.array(index, dtype=np.uint64), 1000)
    assert np.array_equal(found, np.random.Philox(counter=[0, *index], key=key).random_raw(1000))


def naive(index: int, rate: float, config: MaskConfig) -> tuple[list[int], dict[int, int]]:
    """The reference in plain Python: (ids, {position: target})."""
    tokens, starts = (array.tolist() for array in make_row(index))
    key = stream_key(0, "mask")

    def draws() -> Iterator[int]:
        stream = np.random.Philox(counter=[0, 0, 0, index], key=key)
        while True:
            yield int(stream.random_raw())

    numbers = draws()

    def uniform() -> float:
        return (next(numbers) >> 11) / 2**53

    def below(limit: int) -> int:
        return (next(numbers) >> 32) * limit >> 32

    units: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token < NUM_SPECIAL_TOKENS:
            continue
        if config.unit == "token" or starts[place] or tokens[place - 1] < NUM_SPECIAL_TOKENS:
            units.append([])
        units[-1].append(place)
    left = int(rate * sum(map(len, units)) + uniform())
    ids, asked = list(tokens), {}
    for drawn in range(len(units)):
        if left == 0:
            break
        other = drawn + below(len(units) - drawn)
        units[drawn], units[other] = units[other], units[drawn]
        unit = units[drawn]
        if len(unit) > left:
            continue
        left -= len(unit)
        share = uniform()
        for place in unit:
            asked[place] = tokens[place]
            if share < config.mask_prob:
                ids[place] = MASK_ID
            elif share < config.mask_prob + config.random_prob:
                ids[place] = NUM_SPECIAL_TOKENS + below(VOCAB_SIZE - NUM_SPECIAL_TOKENS)
    return ids, asked


@pytest.mark.parametrize("unit", ["word", "token"])
def test_masks_are_the_naive_ones(unit: str) -> None:
    config = MaskConfig(unit=unit, mask_prob=0.5, random_prob=0.3)  # type: ignore[arg-type]
    for index in range(30):
        expected_ids, asked = naive(index, 0.25, config)
        ids, positions, targets = masked(index, 0.25, config)
        assert ids.tolist() == expected_ids
        assert dict(zip(positions.tolist(), targets.tolist(), strict=True)) == asked
        assert (np.diff(positions) > 0).all()


@pytest.mark.parametrize("rate", [0.15, 0.2237, 0.30])
@pytest.mark.parametrize("unit", ["word", "token"])
def test_rate_is_within_half_a_point(rate: float, unit: str) -> None:
    config = MaskConfig(unit=unit)  # type: ignore[arg-type]
    chosen = sum(len(masked(index, rate, config)[1]) for index in range(1000))  # 1M tokens
    ordinary = sum((make_row(index)[0] >= NUM_SPECIAL_TOKENS).sum() for index in range(1000))
    assert chosen / ordinary == pytest.approx(rate, abs=0.0005)


def test_units_are_whole_and_specials_untouched() -> None:
    for index in range(50):
        tokens, starts = make_row(index)
        ids, positions, targets = masked(index, 0.3)
        asked = np.zeros(LENGTH, dtype=bool)
        asked[positions] = True
        ordinary = tokens >= NUM_SPECIAL_TOKENS
        assert not asked[~ordinary].any()
        continues = ordinary & np.append(False, ordinary[:-1]) & ~starts
        assert (asked[continues] == np.append(False, asked[:-1])[continues]).all()
        assert (targets == tokens[positions]).all()
        assert (ids[~asked] == tokens[~asked]).all()


def test_eighty_ten_ten_once_per_unit() -> None:
    kinds, mixed = np.zeros(3), 0
    for index in range(300):
        tokens, starts = make_row(index)
        ids, positions, targets = masked(index, 0.3)
        kind = np.full(LENGTH, -1)
        kind[positions] = 1
        kind[positions[ids[positions] == MASK_ID]] = 0
        kind[positions[ids[positions] == targets]] = 2
        kinds += np.bincount(kind[kind >= 0], minlength=3)
        ordinary = tokens >= NUM_SPECIAL_TOKENS
        pairs = (kind[1:] >= 0) & (kind[:-1] >= 0) & ~starts[1:] & ordinary[1:] & ordinary[:-1]
        mixed += int((pairs & (kind[1:] != kind[:-1])).sum())
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert mixed < 0.001 * kinds.sum()  # a random token may be the target itself, once in VOCAB_SIZE


def test_random_tokens_come_from_the_whole_ordinary_vocabulary() -> None:
    seen = []
    for index in range(200):
        ids, positions, _ = masked(index, 0.3, MaskConfig(mask_prob=0.0, random_prob=1.0))
        seen.append(ids[positions])
    seen = np.concatenate(seen)
    assert seen.min() == NUM_SPECIAL_TOKENS
    assert seen.max() == VOCAB_SIZE - 1
    assert (seen < 500).mean() == pytest.approx(0.5, abs=0.02)  # the rows themselves hold only 500..999


def test_same_key_same_masks_other_key_others() -> None:
    again = masked(3, 0.3)
    assert all(np.array_equal(a, b) for a, b in zip(masked(3, 0.3), again, strict=True))
    for other in (masked(3, 0.3, epoch=1), masked(3, 0.3, seed=1)):
        assert not np.array_equal(other[1], again[1])


def test_rows_of_a_batch_are_masked_one_by_one() -> None:
    rows = [make_row(index) for index in range(4)]
    ids, starts = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    positions, targets = mask_batch(
        ids, starts, np.arange(5) * LENGTH,
        rate=0.2, config=MaskConfig(), vocabulary=OWN, seed=0, indexes=[(0, 0, i) for i in range(4)],
    )  # fmt: skip
    alone = [masked(index, 0.2) for index in range(4)]
    assert np.array_equal(ids, np.concatenate([row[0] for row in alone]))
    assert np.array_equal(positions, np.concatenate([row[1] + i * LENGTH for i, row in enumerate(alone)]))
    assert np.array_equal(targets, np.concatenate([row[2] for row in alone]))


def test_long_units_are_passed_over_and_the_budget_is_met() -> None:
    for index in range(20):
        ids = np.array([CLS_ID, *range(500, 554), SEP_ID])  # a unit of 50 and four of 1
        starts = np.zeros(56, dtype=bool)
        starts[[1, 51, 52, 53, 54]] = True
        positions, _ = mask_batch(
            ids, starts, np.array([0, 56]),
            rate=3 / 54, config=MaskConfig(), vocabulary=OWN, seed=index, indexes=[(0, 0, 0)],
        )  # fmt: skip
        assert len(positions) in (2, 3)  # 3 / 54 * 54 is a hair under 3, and rounded at random
        assert positions.min() > 50


def test_every_unit_is_equally_likely() -> None:
    counts, starts = np.zeros(60), np.zeros(62, dtype=bool)
    firsts = np.cumsum([1, *([1, 2] * 20)])[:-1]  # units of 1 and 2 tokens in turn
    starts[firsts] = True
    for index in range(4000):
        ids = np.array([CLS_ID, *range(500, 560), SEP_ID])
        positions, _ = mask_batch(
            ids, starts, np.array([0, 62]),
            rate=0.2, config=MaskConfig(), vocabulary=OWN, seed=0, indexes=[(0, 0, index)],
        )  # fmt: skip
        counts[positions - 1] += 1
    share = counts[firsts - 1] / 4000
    assert share[::2].std() < 0.02
    assert share[1::2].std() < 0.02
    assert abs(share[::2].mean() - share[1::2].mean()) < 0.03
