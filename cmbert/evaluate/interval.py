"""The mean of a few seeds with its 95 % interval."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and half the width of the 95 % interval of Student's t; None for a single value."""
    from scipy.stats import t

    half = None
    if len(values) > 1:
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "half_width": half, "values": list(values)}
