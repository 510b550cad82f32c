"""Document: what readers give and every tool takes."""

from typing import NamedTuple


class Document(NamedTuple):
    """One source text."""

    id: str
    """Unique within its source where the input says so; else file name and line."""
    source: str
    """Name of the corpus it comes from."""
    text: str
    """Valid Unicode: no NUL and no lone surrogate."""
