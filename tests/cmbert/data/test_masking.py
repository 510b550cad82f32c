"""Masks: rate, whole units, never specials, 80/10/10 per unit, the same numbers for the same key."""

import numpy as np
import pytest

from cmbert.config.schema import MaskConfig
from cmbert.data.masking import MaskedRow, choose_units, mask_row
from cmbert.seeding import generator
from cmbert.tokenizer import CLS_ID, MASK_ID, NUM_SPECIAL_TOKENS, SEP_ID

VOCAB_SIZE = 1000
LENGTH = 1024


def make_row(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of several pieces: tokens 500..999, units of 1 to 4 tokens."""
    random = np.random.default_rng(index)
    tokens = random.integers(500, VOCAB_SIZE, LENGTH)
    starts = random.random(LENGTH) < 0.6
    maskable = np.ones(LENGTH, dtype=bool)
    bounds = np.sort(random.choice(np.arange(1, LENGTH // 8) * 8, 5, replace=False))
    for first, last in zip([0, *bounds], [*bounds, LENGTH], strict=True):
        tokens[first], tokens[last - 1] = CLS_ID, SEP_ID
        maskable[first] = maskable[last - 1] = False
        starts[first + 1] = True
    return tokens, starts, maskable


def masked(index: int, rate: float, config: MaskConfig | None = None) -> MaskedRow:
    tokens, starts, maskable = make_row(index)
    return mask_row(
        tokens, starts, maskable,
        rate=rate, config=config or MaskConfig(), vocab_size=VOCAB_SIZE, random=generator(0, "mask", 0, 0, index),
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0.15, 0.2237, 0.30])
@pytest.mark.parametrize("unit", ["word", "token"])
def test_rate_is_within_half_a_point(rate: float, unit: str) -> None:
    config = MaskConfig(unit=unit)  # type: ignore[arg-type]
    rows = [masked(index, rate, config) for index in range(1000)]  # 1M tokens
    maskable = sum(make_row(index)[2].sum() for index in range(1000))
    assert sum(len(row.positions) for row in rows) / maskable == pytest.approx(rate, abs=0.0005)


def test_units_are_whole_and_specials_untouched() -> None:
    for index in range(50):
        tokens, starts, maskable = make_row(index)
        row = masked(index, 0.3)
        asked = np.zeros(LENGTH, dtype=bool)
        asked[row.positions] = True
        assert not asked[~maskable].any()
        inside = maskable & np.append(False, maskable[:-1])  # has a maskable neighbour before it
        continues = inside & ~starts
        assert (asked[continues] == np.append(False, asked[:-1])[continues]).all()
        assert (row.targets == tokens[row.positions]).all()
        untouched = ~asked
        assert (row.input_ids[untouched] == tokens[untouched]).all()


def test_eighty_ten_ten_once_per_unit() -> None:
    kinds, mixed = np.zeros(3), 0
    for index in range(300):
        _tokens, starts, maskable = make_row(index)
        row = masked(index, 0.3)
        kind = np.full(LENGTH, -1)
        kind[row.positions] = 1
        kind[row.positions[row.input_ids[row.positions] == MASK_ID]] = 0
        kind[row.positions[row.input_ids[row.positions] == row.targets]] = 2
        kinds += np.bincount(kind[kind >= 0], minlength=3)
        pairs = (kind[1:] >= 0) & (kind[:-1] >= 0) & ~starts[1:] & maskable[1:] & maskable[:-1]
        mixed += int((pairs & (kind[1:] != kind[:-1])).sum())
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert mixed < 0.001 * kinds.sum()  # a random token may be the target itself, once in VOCAB_SIZE


def test_random_tokens_come_from_the_whole_ordinary_vocabulary() -> None:
    seen = []
    for index in range(200):
        row = masked(index, 0.3, MaskConfig(mask_share=0.0, random_share=1.0))
        seen.append(row.input_ids[row.positions])
    seen = np.concatenate(seen)
    assert seen.min() == NUM_SPECIAL_TOKENS
    assert seen.max() == VOCAB_SIZE - 1
    assert (seen < 500).mean() == pytest.approx(0.5, abs=0.02)  # the rows themselves hold only 500..999


def test_same_key_same_masks_other_key_others() -> None:
    again = masked(3, 0.3)
    assert (masked(3, 0.3).input_ids == again.input_ids).all()
    tokens, starts, maskable = make_row(3)
    other = mask_row(
        tokens, starts, maskable,
        rate=0.3, config=MaskConfig(), vocab_size=VOCAB_SIZE, random=generator(0, "mask", 0, 1, 3),
    )  # fmt: skip
    assert not np.array_equal(other.positions, again.positions)


def test_long_units_are_passed_over_and_the_budget_is_met() -> None:
    lengths = np.array([50, 1, 1, 1, 1])
    for index in range(20):
        chosen = choose_units(lengths, 3.0, np.random.default_rng(index))
        assert lengths[chosen].sum() == 3
        assert not chosen[0]
    assert not choose_units(np.array([5]), 0.0, np.random.default_rng(0)).any()


def test_every_unit_is_equally_likely() -> None:
    counts = np.zeros(40)
    lengths = np.array([1, 2] * 20)
    for index in range(4000):
        counts += choose_units(lengths, 12.0, np.random.default_rng(index))
    share = counts / 4000
    assert share[::2].std() < 0.02
    assert share[1::2].std() < 0.02
    assert abs(share[::2].mean() - share[1::2].mean()) < 0.03
