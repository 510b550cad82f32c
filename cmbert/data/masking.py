"""Whole-word masks for a batch of rows: the same masks for the same (seed, epoch, row), whoever asks."""

from collections.abc import Sequence

import numpy as np

from cmbert.config.schema import MaskConfig
from cmbert.data.kernels import mask_rows
from cmbert.seeding import stream_key
from cmbert.vocabulary import Vocabulary

MASK_PURPOSE = "mask"


def mask_batch(
    ids: np.ndarray,
    unit_starts: np.ndarray,
    row_bounds: np.ndarray,
    *,
    rate: float,
    config: MaskConfig,
    vocabulary: Vocabulary,
    seed: int,
    indexes: Sequence[tuple[int, int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Mask the rows of a batch in place; return where a prediction is asked for and what stood there.

    ids: (T,) int64, changed in place. unit_starts: (T,) bool, where a maskable unit begins. row_bounds: (rows + 1,)
    int64. rate: share of the ordinary tokens to predict. indexes: (source, epoch, row) of every row.
    Returns (positions, targets), (M,) int64 each, positions ascending.
    """
    starts = unit_starts if config.unit == "word" else np.ones_like(unit_starts)
    key = stream_key(seed, MASK_PURPOSE)
    return mask_rows(
        ids,
        starts,
        row_bounds,
        np.array([key & (2**64 - 1), key >> 64], dtype=np.uint64),
        np.array(indexes, dtype=np.uint64).reshape(-1, 3),
        rate,
        config.mask_prob,
        config.random_prob,
        vocabulary.mask_id,
        vocabulary.is_ordinary,
        vocabulary.ordinary,
    )
