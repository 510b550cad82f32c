"""What the ids of a vocabulary are for: special tokens by their roles, wherever they stand, and the ordinary ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of tokenizers made here: their ids are their places
ROLES = ("pad", "unk", "cls", "sep", "mask")  # in the order of SPECIAL_TOKENS
STAND_INS = {"cls": "bos", "sep": "eos"}  # roles under which decoders' tokenizers have them
NEEDED = ("pad", "cls", "sep", "mask")
VOCAB_MULTIPLE = 64  # rows of the embedding: kernel tiling


def rows_for(num_ids: int) -> int:
    """Return the rows of an embedding: the ids, rounded up to a multiple of 64."""
    return -(-num_ids // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer, and what they are for."""

    pad_id: int
    unk_id: int | None
    """What stands for text that the vocabulary cannot spell; None = there is no such text."""
    cls_id: int
    sep_id: int
    mask_id: int
    is_ordinary: np.ndarray
    """(size,) bool: the ids that may be hidden, asked for and put in another's place."""

    @property
    def size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.is_ordinary)

    @property
    def rows(self) -> int:
        """Rows of the embedding: the ids, and blank rows up to a multiple of 64."""
        return rows_for(self.size)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ordinary ids, ascending, int64."""
        return np.flatnonzero(self.is_ordinary)

    @property
    def special(self) -> list[int]:
        """The other ids, ascending."""
        return np.flatnonzero(~self.is_ordinary).tolist()


def make_vocabulary(roles: Mapping[str, int], special: set[int], size: int) -> Vocabulary:
    """Return the vocabulary of `size` ids.

    roles: the ids of NEEDED and, if there is one, of unk. special: all other special ids.
    """
    is_ordinary = np.ones(size, dtype=bool)
    is_ordinary[list(special | set(roles.values()))] = False
    return Vocabulary(
        pad_id=roles["pad"],
        unk_id=roles.get("unk"),
        cls_id=roles["cls"],
        sep_id=roles["sep"],
        mask_id=roles["mask"],
        is_ordinary=is_ordinary,
    )


def role_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each role with the tokens that may have it, the likeliest first.

    settings: of tokenizer_config.json, whose `cls_token` and the like are names, or tables with the name as `content`.
    """
    for role, usual in zip(ROLES, SPECIAL_TOKENS, strict=True):
        keys = [role, *([STAND_INS[role]] if role in STAND_INS else [])]
        named = [settings.get(f"{key}_token") for key in keys]
        names = [name.get("content") if isinstance(name, dict) else name for name in named]
        yield role, [name for name in (*names, usual) if isinstance(name, str)]
