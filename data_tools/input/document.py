"""Document: what readers give and every tool takes."""

from hashlib import blake2b
from typing import NamedTuple


class Document(NamedTuple):
    """One source text."""

    id: str
    """Unique within its source where the input says so; else file name and line."""
    source: str
    """Name of the corpus it comes from."""
    text: str
    """Valid Unicode: no NUL and no lone surrogate."""


def text_hash(text: str, purpose: bytes) -> int:
    """Return 64 bits that depend on text and purpose alone."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8, person=purpose).digest(), "little")
