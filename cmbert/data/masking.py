"""Whole-word masks: choose units up to a token budget, decide 80/10/10 once per unit. Specials are never touched."""

from typing import NamedTuple

import numpy as np

from cmbert.config.schema import MaskConfig
from cmbert.tokenizer import MASK_ID, NUM_SPECIAL_TOKENS


class MaskedRow(NamedTuple):
    """A row ready for the model."""

    input_ids: np.ndarray  # (n,) int64, corrupted
    positions: np.ndarray  # (m,) int64, ascending: where a prediction is asked for
    targets: np.ndarray  # (m,) int64, the tokens that stood there


def mask_row(
    tokens: np.ndarray,
    unit_starts: np.ndarray,
    maskable: np.ndarray,
    *,
    rate: float,
    config: MaskConfig,
    vocab_size: int,
    random: np.random.Generator,
) -> MaskedRow:
    """Mask one row.

    tokens: ids, shape (n,), int64. unit_starts: shape (n,), bool, where a unit begins; read only where `maskable`.
    maskable: shape (n,), bool, false on [CLS] and [SEP]. rate: share of the maskable tokens to predict.
    """
    places = np.flatnonzero(maskable)
    starts = np.ones(len(places), dtype=bool) if config.unit == "token" else unit_starts[places]
    unit = np.cumsum(starts) - 1  # (maskable tokens,)
    lengths = np.bincount(unit)
    chosen = choose_units(lengths, rate * len(places), random)
    draw = random.random(len(lengths))
    masked = chosen[unit]
    positions, draw = places[masked], draw[unit[masked]]
    targets = tokens[positions]
    replaced = draw < config.mask_share
    random_word = ~replaced & (draw < config.mask_share + config.random_share)
    input_ids = tokens.copy()
    input_ids[positions[replaced]] = MASK_ID
    input_ids[positions[random_word]] = random.integers(NUM_SPECIAL_TOKENS, vocab_size, np.count_nonzero(random_word))
    return MaskedRow(input_ids, positions, targets)


def choose_units(lengths: np.ndarray, budget_tokens: float, random: np.random.Generator) -> np.ndarray:
    """Choose random units whose lengths (tokens, shape (units,)) add up to the budget; shape (units,), bool.

    The fraction of a token in the budget is rounded at random, so the rate is right on average for rows of any length.
    A unit longer than what is left of the budget is passed over.
    """
    chosen = np.zeros(len(lengths), dtype=bool)
    left = int(budget_tokens + random.random())
    order = random.permutation(len(lengths))
    while left > 0 and len(order):
        total = np.cumsum(lengths[order])
        taken = int(np.searchsorted(total, left, side="right"))
        chosen[order[:taken]] = True
        left -= int(total[taken - 1]) if taken else 0
        order = order[taken:]
        order = order[lengths[order] <= left]
    return chosen
