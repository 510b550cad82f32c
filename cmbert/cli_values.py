"""What people give on a command line, read; a mistake becomes argparse's one line. Shared by cmbert and data_tools."""

import argparse


def words(text: str) -> list[str]:
    """Return the words between commas."""
    return [word for word in text.split(",") if word]


def integers(text: str) -> list[int]:
    """Return the whole numbers between commas."""
    try:
        return [int(part) for part in words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: must be whole numbers with commas, for example 512,8192") from error


def numbers(text: str) -> list[float]:
    """Return the numbers above 0 between commas."""
    try:
        return [positive_number(part) for part in words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: must be numbers with commas, for example 3e-5,5e-5") from error


def positive(text: str) -> int:
    """Return a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """Return a number above 0 that is not infinite."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be positive")
    return value


def share(text: str) -> float:
    """Return a number above 0, at most 1."""
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1")
    return value


def step_range(text: str) -> tuple[int, int]:
    """Return the steps [first, last) of "first:last"."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: must be first:last, for example 500:505")
    return int(first), int(last)
