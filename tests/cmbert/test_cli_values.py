"""Numbers and names of a command line: what is none is told at once, in one line; no option needs to be listed here."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmbert.cli import build_parser, main
from cmbert.cli_values import any_lengths, lengths, num_bytes, numbers, positive_number, share, step_range, whole, words

NO_NUMBERS = (
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e-999",
    "0x10",
    "１２",
    "1_000",
    " 5",
    "5 ",
    "½",
    "²",
    "٣",
    "9" * 5000,
)
NO_WHOLE_NUMBERS = (*NO_NUMBERS, "-1", "1e3", "5.0", "+5", str(10**30), str(2**63))
LISTS = ("1,,2", ",1", "1,", ",", "1;2", "1, 2")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0", "-1", "0.0", "1e999"])
def test_only_positive_numbers_pass(text: str) -> None:
    for read in (positive_number, share, numbers):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            read(text)
    with pytest.raises(argparse.ArgumentTypeError):
        numbers(f"1e-4,{text}")
    assert numbers("1e-4,2") == [1e-4, 2.0]


def all_options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from all_options(command)
        else:
            yield action


def readings(option: argparse.Action) -> object:
    """Return what an option reads out of "16", "1", "1:2" or "word": what it takes at all."""
    for text in ("16", "1", "1:2", "word"):
        try:
            return option.type(text)  # type: ignore[operator, misc]
        except argparse.ArgumentTypeError:
            continue
    raise AssertionError(option.option_strings)


def refused(option: argparse.Action, texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as raised:
            option.type(text)  # type: ignore[operator, misc]
        assert len(str(raised.value)) < 200
        assert "\n" not in str(raised.value)


def test_every_option_refuses_what_is_no_number_or_name() -> None:
    tried = 0
    for option in all_options(build_parser()):
        if option.type is None:
            continue
        value = readings(option)
        match value:
            case int():
                refused(option, (*NO_WHOLE_NUMBERS, *LISTS))
            case float():
                refused(option, (*NO_NUMBERS, "-1", "0", *LISTS))
            case Path():
                refused(option, ("", " "))
            case tuple():  # first:last
                refused(option, (*NO_WHOLE_NUMBERS, "5:", ":5", "5:5", "6:5", "-1:5", "nan:5", f"1:{10**30}"))
            case [int(), *_]:
                wrong = (*NO_WHOLE_NUMBERS, *LISTS, "0", "8,-1")
                refused(option, tuple(text for text in wrong if text or option.type is not any_lengths))
            case [float(), *_]:
                refused(option, (*NO_NUMBERS, *LISTS, "0", "1,-1"))
            case [str(), *_]:
                refused(option, ("", " ", ",", "word,", ",word", "word,,word"))
            case _:
                raise AssertionError(option.option_strings)
        tried += not isinstance(value, Path)
    assert tried > 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["plan", "r.toml", "--gpus", "-1"],
            "cmbert plan: error: argument --gpus: -1: must be a whole number from 1 to",
        ),
        (
            ["ledger", "run", "--step", "１２"],
            "cmbert ledger: error: argument --step: '１２': must be a whole number from 0",
        ),
        (
            ["eval", "m", "--data", "d", "--context", "512,,64"],
            "argument --context: 512,,64: must be whole numbers from 1",
        ),
        (["embed-train", "--seed", "nan"], "argument --seed: nan: must be a whole number from 0 to 4294967295"),
        (["finetune", "--seeds", "0"], "argument --seeds: 0: must be a whole number from 1"),
        (["eval", "m", "--data", "d", "--max-rows", "0"], "argument --max-rows: 0: must be a whole number from 1"),
        (["bench", "train", "--batch-tokens", "0"], "argument --batch-tokens: 0: must be a whole number from 1"),
        (["report", "run", "--output", ""], "argument --output: an empty name; name a file or folder"),
    ],
)
def test_the_line_names_the_option(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", [*NO_WHOLE_NUMBERS, "0", "0MB", "1.5", "1.5B", "MB", "10XB", "10MBit", "-1MB", "0.1B"])
def test_only_sizes_pass(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="500KB, 10MB"):
        num_bytes(text)


def test_what_passes() -> None:
    assert whole(0)("007") == 7
    assert [num_bytes(text) for text in ("5", "5B", "500KB", "10MB", "10 mb", "10M", "1.5GB", "2GiB", "1TiB")] == [
        5, 5, 500_000, 10**7, 10**7, 10**7, 1_500_000_000, 2**31, 2**40,
    ]  # fmt: skip
    assert lengths("512,8192") == [512, 8192]
    assert step_range("5:9") == (5, 9)
    assert words("tnews,my task.toml") == ["tnews", "my task.toml"]


def test_no_option_of_any_command_takes_nan() -> None:
    tried = 0
    for option in all_options(build_parser()):
        if not callable(option.type) or option.type is str:
            continue
        try:
            value = option.type("nan")
        except (ValueError, argparse.ArgumentTypeError):
            tried += 1
            continue
        found = value if isinstance(value, list) else [value]
        assert not any(isinstance(one, float) and math.isnan(one) for one in found), option.option_strings
    assert tried > 10
