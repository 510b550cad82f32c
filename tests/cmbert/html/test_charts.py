"""Curves as a page draws them: smoothed, thinned out without loss of a spike, numbers as people say them."""

import numpy as np
import pytest

from cmbert.html.charts import MAX_POINTS, compact, decimate, smooth
from cmbert.progress import duration


def test_smoothing_over_steps_without_a_value() -> None:
    values = np.full(100, np.nan)
    assert np.isnan(smooth(values)).all()
    values[50] = 4.0
    smoothed = smooth(values)
    assert np.flatnonzero(np.isfinite(smoothed)).tolist() == [48, 49, 50, 51, 52]
    assert np.nanmax(smoothed) == np.nanmin(smoothed) == 4.0


def test_decimation_keeps_ends_and_spikes() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 9000)
    y[54_321] = 50.0
    few_x, few_y = decimate(x, y)
    assert len(few_x) == len(few_y) <= MAX_POINTS
    assert (few_x[0], few_x[-1]) == (0.0, 99_999.0)
    assert few_y.max() == 50.0
    assert np.all(np.diff(few_x) > 0)
    assert len(decimate(x[:MAX_POINTS], y[:MAX_POINTS])[0]) == MAX_POINTS


def test_smoothing() -> None:
    assert np.allclose(smooth(np.full(100, 3.0)), 3.0)
    values = np.random.default_rng(0).normal(size=80)
    smoothed = smooth(values)  # two steps to either side
    assert smoothed[0] == pytest.approx(values[0])
    assert smoothed[1] == pytest.approx(values[:3].mean())
    assert smoothed[40] == pytest.approx(values[38:43].mean())
    assert smoothed[79] == pytest.approx(values[77:].mean())


def test_numbers_as_people_say_them() -> None:
    values = (0, 0.25, 640, 1800, 999_600, 2_048_000, 45e9, 1.1e12)
    assert [compact(v) for v in values] == ["0", "0.25", "640", "1.8k", "1M", "2.05M", "45B", "1.1T"]
    assert [duration(v) for v in (75, 150, 9000)] == [("75.0", "s"), ("2.5", "min"), ("2.5", "h")]
