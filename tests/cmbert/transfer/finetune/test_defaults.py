"""What is taken where nobody says: the rate falls with the width, epochs with the examples; what is asked for wins."""

from dataclasses import replace
from itertools import pairwise

import pytest

from cmbert.errors import ConfigError
from cmbert.transfer.finetune.defaults import (
    HIGHEST_RATE,
    LEAST_STEPS,
    LOWEST_RATE,
    Asked,
    default_epochs,
    default_learning_rate,
)
from cmbert.transfer.finetune.trial import Setting
from cmbert.transfer.tasks.task import CLUE_TASKS, find_task

TASK = CLUE_TASKS[0]


def test_the_rate_falls_with_the_width_between_two_bounds():
    rates = [default_learning_rate(width) for width in (1, 64, 128, 256, 384, 512, 768, 1024, 100_000)]
    assert all(narrow >= wide for narrow, wide in pairwise(rates))
    assert (rates[0], rates[-1]) == (HIGHEST_RATE, LOWEST_RATE)
    assert default_learning_rate(128) > default_learning_rate(256) > default_learning_rate(384)
    assert 3e-5 <= default_learning_rate(1024) <= default_learning_rate(768) <= 5e-5  # as everybody tunes such models


@pytest.mark.parametrize("batch_size", [8, 32])
def test_fewer_examples_are_passed_over_more_often(batch_size):
    counts = (1, 100, 1_600, 9_600, 50_000, 400_000)
    epochs = [default_epochs(count, batch_size) for count in counts]
    assert epochs == sorted(epochs, reverse=True)
    assert (epochs[0], epochs[-1]) == (10, 3)
    assert all(
        passes in (3, 10) or passes * -(-count // batch_size) >= LEAST_STEPS > (passes - 1) * -(-count // batch_size)
        for count, passes in zip(counts, epochs, strict=True)
    )


def test_what_is_asked_for_wins_over_the_task_and_the_task_over_the_default():
    (default,) = Asked().settings(TASK, 1024, 34_334)
    assert default == Setting(learning_rate=3e-5, batch_size=32, epochs=3)
    assert Asked().why(TASK, 128, 1_600)["learning_rate"] == "by the model's width, 128"
    assert "1,600 training examples" in Asked().why(TASK, 128, 1_600)["epochs"]
    own = replace(TASK, learning_rate=2e-4, epochs=7, batch_size=16)
    assert Asked().settings(own, 128, 10) == [Setting(learning_rate=2e-4, batch_size=16, epochs=7)]
    assert Asked().why(own, 128, 10) == {"learning_rate": "the task's", "epochs": "the task's"}
    asked = Asked(learning_rates=(1e-4, 1e-3), batch_sizes=(8,), epochs=(1, 2), grid=True)
    assert {s.learning_rate for s in asked.settings(own, 128, 10)} == {1e-4, 1e-3}
    assert {(s.batch_size, s.epochs) for s in asked.settings(own, 128, 10)} == {(8, 1), (8, 2)}
    assert asked.why(own, 128, 10) == {"learning_rate": "--learning-rates", "epochs": "--epochs"}
    assert Asked().settings(find_task("ocnli"), 128, 10_000)[0].epochs == 5  # CLUE's baseline
    with pytest.raises(ConfigError, match="0 must be positive"):
        Asked(batch_sizes=(0,))


def test_the_grid_lies_around_the_rate():
    grid = Asked(grid=True)
    wide = [setting.learning_rate for setting in grid.settings(TASK, 1024, 34_334)]
    assert sorted(set(wide)) == [1e-5, 2e-5, 3e-5, 5e-5, 8e-5]
    assert len(wide) == 10
    for width in (128, 256, 384):
        rates = {setting.learning_rate for setting in grid.settings(TASK, width, 34_334)}
        assert min(rates) < default_learning_rate(width) < max(rates)
        assert len(rates) == 5
        assert default_learning_rate(width) in rates
    assert "--grid around 0.0002, the task's" in grid.why(replace(TASK, learning_rate=2e-4), 128, 10)["learning_rate"]
