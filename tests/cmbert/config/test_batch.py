"""Rows of a micro-batch: the most that divide at any world size, as a search over all of them finds them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmbert.config.batch import describe_micro_batch, possible_micro_batches, taken_micro_batch
from cmbert.config.schema import TrainConfig
from cmbert.errors import ConfigError

LARGE = TrainConfig(total_tokens=10**9, rows_per_step=4928, micro_batch_rows=44)
sizes = st.integers(1, 60)


def ramped(start: int, increment: int, most: int, increments: int = 3) -> TrainConfig:
    rows = start + increments * increment
    return TrainConfig(
        total_tokens=10**9, rows_per_step=rows, micro_batch_rows=most, ramp_start_rows=start,
        ramp_increment_rows=increment, ramp_tokens=10**6,
    )  # fmt: skip


@given(start=sizes, increment=sizes, most=sizes, ranks=st.integers(1, 12))
def test_every_step_of_a_ramp_divides_and_no_larger_one_does(start: int, increment: int, most: int, ranks: int) -> None:
    train = ramped(start, increment, most)
    steps = range(start, train.rows_per_step + 1, increment)

    def divides(rows: int) -> bool:
        return all(step % (rows * ranks) == 0 for step in steps)

    fitting = [rows for rows in range(1, most + 1) if divides(rows)]
    if not fitting:
        with pytest.raises(ConfigError, match="do not all divide over"):
            taken_micro_batch(train, ranks)
        return
    assert taken_micro_batch(train, ranks) == max(fitting)
    assert [rows for rows in possible_micro_batches(train, ranks) if rows <= most] == fitting


@pytest.mark.parametrize(("ranks", "rows"), [(8, 44), (56, 44), (64, 11), (112, 44), (448, 11), (1232, 4), (4928, 1)])
def test_large(ranks: int, rows: int) -> None:
    assert taken_micro_batch(LARGE, ranks) == rows


def test_nothing_changes_where_the_number_divides() -> None:
    """What micro_batch_rows meant before: a divisor of every rank's share."""
    for ranks in (1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 112):
        train = replace(LARGE, micro_batch_rows=11)
        assert (taken_micro_batch(train, ranks), describe_micro_batch(train, ranks)) == (11, "")


def test_the_nearest_rank_counts_work() -> None:
    with pytest.raises(ConfigError, match=r"4928 rows do not divide over 48 GPUs .* work: 44 or 56 GPUs$"):
        taken_micro_batch(LARGE, 48)
    assert taken_micro_batch(LARGE, 44) == 28
    with pytest.raises(ConfigError, match=r"nearest that work: 4928 GPUs$"):
        taken_micro_batch(LARGE, 5000)


def test_one_line_says_that_it_is_fewer() -> None:
    assert describe_micro_batch(LARGE, 56) == ""
    assert describe_micro_batch(LARGE, 64) == (
        "micro-batches of 11 rows: 77 rows a GPU do not divide into train.micro_batch_rows = 44"
    )
    assert describe_micro_batch(LARGE, 448) == ""  # all that a rank has, at once
    assert "micro-batches of 11 rows: 88 rows a GPU and the ramp's common 11" in describe_micro_batch(
        ramped(616, 616, 44, increments=7), 56
    )
