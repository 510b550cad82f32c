"""Document: what readers give and every tool takes."""

from enum import StrEnum
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
    metadata: tuple[float | str, ...] = ()
    """What stands in the fields that the reader was asked for, in their order."""


class Purpose(StrEnum):
    """What texts are chosen for by their hashes; at most 16 bytes, each used in one place.

    Each has hashes of its own: who took the smallest of another's would find them gone, or always the same texts.
    """

    SAMPLE = "order"
    SAMPLE_HELD_OUT = "held-out"
    CLEAN_HELD_OUT = "clean: held-out"
    CLEAN_METADATA = "clean: metadata"
    TOKENIZER_SAMPLE = "tokenizer sample"
    TOKENIZER_MEASURED = "measure"


def text_hash(text: str, purpose: Purpose) -> int:
    """Return 64 bits that depend on text and purpose alone."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8, person=purpose.encode()).digest(), "little")
