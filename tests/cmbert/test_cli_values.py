"""Numbers of a command line: what nan or infinity would do to a rate or a time is never found out."""

import argparse
import math

import pytest

from cmbert.cli import build_parser
from cmbert.cli_values import numbers, positive_number, share


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0", "-1", "0.0", "1e999"])
def test_only_positive_numbers_pass(text: str) -> None:
    for read in (positive_number, share, numbers):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            read(text)
    with pytest.raises(argparse.ArgumentTypeError):
        numbers(f"1e-4,{text}")
    assert numbers("1e-4,2") == [1e-4, 2.0]


def all_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [option for command in action.choices.values() for option in all_options(command)]
        else:
            found.append(action)
    return found


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
