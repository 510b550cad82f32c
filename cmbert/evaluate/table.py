"""A Markdown table that is also readable in a terminal."""

import unicodedata
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells under `header`, columns padded to one width; the first column left, the others right.

    Markdown ends a cell at "|"; "/" stands for it.
    """
    lines = [[cell.replace("|", "/") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(display_width(line[column]) for line in lines)) for column in range(len(header))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [[pad(cell, widths[column], column > 0) for column, cell in enumerate(line)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def pad(cell: str, width: int, to_the_left: bool) -> str:
    """Return `cell` with blanks up to `width` columns of a terminal."""
    blanks = " " * (width - display_width(cell))
    return blanks + cell if to_the_left else cell + blanks


def display_width(text: str) -> int:
    """Return the columns that `text` takes in a terminal: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "FW" else 1 for character in text)
