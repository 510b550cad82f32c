"""Any weights: every source within two rows of its share in any stretch, exactly, however long the run."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmbert.config.schema import DataConfig, SourceConfig
from cmbert.data.blend import Blend, Phase
from cmbert.data.sources import check_epochs
from cmbert.errors import ConfigError


def make_blend(weights: list[float], rows: list[int] | None = None, *more: Phase) -> Blend:
    sources: list[Any] = [SimpleNamespace(num_rows=count) for count in rows or [1000] * len(weights)]
    return Blend(sources, [Phase(0, tuple(weights)), *more])


def sources_of(blend: Blend, num_rows: int) -> np.ndarray:
    return np.array([blend.address(row).source for row in range(num_rows)])


def largest_stretch_error(order: np.ndarray, shares: np.ndarray) -> float:
    """Return by how many rows a source is off its share in the worst of all stretches."""
    worst, places = 0.0, np.arange(len(order) + 1)
    for source, share in enumerate(shares):
        ahead = np.concatenate([[0], np.cumsum(order == source)]) - share * places
        worst = max(worst, float(ahead.max() - ahead.min()))
    return worst


def random_weights(random: np.random.Generator) -> list[float]:
    weights = 10.0 ** random.uniform(-random.choice([0.3, 2, 6]), 0, random.integers(2, 40))
    return [float(weight) for weight in weights]


@pytest.mark.parametrize(
    "weights",
    [
        [1, 2.5e-5],
        [1, 4.5e-5],
        [0.5, *[0.01] * 50],  # fifty that would like to come at once
        [0.34, 0.33, 0.32, 0.005, 0.005],
        *[random_weights(np.random.default_rng(seed)) for seed in range(8)],
    ],
)
def test_every_stretch_is_within_two_rows_of_the_shares(weights: list[float]) -> None:
    shares = np.array(weights) / sum(weights)
    order = sources_of(make_blend(weights), 80_000)
    assert largest_stretch_error(order, shares) < 2


def test_a_small_source_comes_as_often_as_it_should() -> None:
    order = sources_of(make_blend([1, 2.5e-5]), 200_000)
    assert np.count_nonzero(order == 1) in (4, 5)  # 4.9999
    order = sources_of(make_blend([1, 4.5e-5]), 200_000)
    assert np.count_nonzero(order == 1) in (8, 9)  # 8.9996


def test_sources_without_weights_end_together_however_small() -> None:
    rows = [190_000, 3, 9_997]  # the second is a 60,000th: less than one row in 16,384
    blend = make_blend([0, 0, 0], rows)
    addresses = [blend.address(row) for row in range(sum(rows))]
    assert np.bincount([address.source for address in addresses]).tolist() == rows
    assert {address.epoch for address in addresses} == {0}
    assert blend.epochs(sum(rows)) == [1, 1, 1]
    assert blend.address(sum(rows)).epoch == 1


def test_a_row_is_the_same_whoever_asks_first() -> None:
    weights, change = [0.7123456789, 0.2876543, 1e-6], Phase(90_001, (1.0, 1.0, 1.0))
    inorder = make_blend(weights, None, change)
    addresses = [inorder.address(row) for row in range(200_000)]
    for row in (199_999, 90_001, 70_000, 3):
        assert make_blend(weights, None, change).address(row) == addresses[row]


def test_weights_change_and_no_row_is_lost() -> None:
    rows, change = [400, 500], 66_000
    blend = make_blend([0.8, 0.2], rows, Phase(change, (0.1, 0.9)), Phase(change + 5000, (0.0, 1.0)))
    addresses = [blend.address(row) for row in range(change + 9000)]
    for source in (0, 1):
        order = [a.epoch * rows[source] + a.row for a in addresses if a.source == source]
        assert order == list(range(len(order)))
    assert sum(address.source == 0 for address in addresses[change : change + 5000]) == 500
    assert not any(address.source == 0 for address in addresses[change + 5000 :])
    counted = [sum(a.source == s for a in addresses) for s in (0, 1)]
    assert counted == [0.8 * change + 500, 0.2 * change + 8500]
    assert blend.epochs(len(addresses)) == [count / size for count, size in zip(counted, rows, strict=True)]


def test_rows_of_each_source_are_counted_exactly() -> None:
    rows = [400, 500, 600]
    blend = make_blend([0.5, 0.3, 0.2], rows, Phase(70_003, (0.0, 0.01, 1.0)))
    for num_rows in (0, 1, 69_999, 70_003, 140_000):
        found = np.bincount(sources_of(blend, num_rows), minlength=3).tolist() if num_rows else [0, 0, 0]
        assert blend.consumed(num_rows) == found


def test_a_checkpoint_knows_where_each_source_is() -> None:
    weights = [0.7123456789, 0.2876543, 1e-6]
    inorder = make_blend(weights)
    addresses = [inorder.address(row) for row in range(80_000)]
    for row in (1, 70_001):
        later = make_blend(weights)
        assert later.learn(row, inorder.consumed(row))
        assert later.turns[0]._known == [0, row]
        assert [later.address(r) for r in range(row, 80_000)] == addresses[row:]
        assert later.address(0) == addresses[0]
        assert later.consumed(79_000) == inorder.consumed(79_000)
        assert not make_blend([0.6, 0.4, 1e-6]).learn(row + 100, inorder.consumed(row + 100))
    count = inorder.consumed(70_001)
    assert not make_blend(weights).learn(70_001, [count[0] - 2, count[1] + 2, count[2]])
    assert not make_blend(weights).learn(70_001, [])


def test_a_stage_begins_where_another_ended() -> None:
    blend = make_blend([0.7, 0.3], [100, 50])
    first = [blend.address(row) for row in range(150)]
    ended = blend.consumed(90)
    later = make_blend([0.2, 0.8], [100, 50])
    later.begin_at(ended)
    assert later.consumed(0) == ended
    mine = [later.address(row) for row in range(60)]
    for source in (0, 1):
        nth = [a.epoch * (100, 50)[source] + a.row for a in mine if a.source == source]
        assert nth == list(range(ended[source], ended[source] + len(nth)))
    assert not set(mine) & set(first[:90])
    assert later.learn(30, later.consumed(30))


def test_numbers_of_any_size_are_taken() -> None:
    blend = make_blend([1e-300, 1e300, 3e299])
    assert np.bincount(sources_of(blend, 1300), minlength=3).tolist() == [0, 1000, 300]


def test_a_source_that_no_row_comes_from_is_refused() -> None:
    blend = make_blend([1.0, 1e-5])
    data = DataConfig(
        tokenizer="t",
        sources=(SourceConfig(path="large", max_epochs=1e9), SourceConfig(path="small")),
        context_tokens=8,
    )
    with pytest.raises(ConfigError, match=r"data\.sources: small.*0\.5 rows"):
        check_epochs(blend, data, 50_000)
    check_epochs(blend, data, 100_001)
