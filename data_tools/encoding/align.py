"""Where maskable units begin: at the characters where both the words and the tokens have a boundary.

A byte-level vocabulary is lossless, so the tokens' byte lengths alone place every token in the text: no offsets from
the encoder, and a whole batch of documents is aligned by a few numpy operations. Other vocabularies: offsets.py.
"""

from dataclasses import dataclass

import numpy as np

from cmbert.errors import ConfigError


@dataclass(frozen=True)
class Alignment:
    """The units of a batch of documents laid back to back."""

    unit_starts: np.ndarray  # (tokens,) bool: the token begins a unit
    token_lengths: np.ndarray  # (tokens,) characters that begin in each token; 0 within a character
    unit_lengths: np.ndarray  # (units,) characters
    num_characters: int  # of the documents; as many as in the tokens, unless the tokenizer drops some
    num_words: int  # of which at least one token shows something, or whose place one takes


def align(text: str, word_lengths: np.ndarray, token_bytes: np.ndarray) -> Alignment:
    """Align words and tokens of a batch.

    text: the normalised documents, joined, not empty. word_lengths: characters of each word, shape (words,), int64.
    token_bytes: UTF-8 bytes of each token, shape (tokens,), int64. Both follow the text, document by document.
    Raises ConfigError when the tokens do not spell the text: such a tokenizer loses something.
    """
    raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    if token_bytes.sum() != len(raw):
        raise ConfigError("the tokenizer is not lossless byte-level BPE: its tokens do not spell the text")
    assert word_lengths.sum() == len(text)
    begins_character = (raw & 0xC0) != 0x80  # every byte but UTF-8's continuation bytes
    first_bytes = np.flatnonzero(begins_character)  # (characters,)
    begins_word = np.zeros(len(raw), dtype=bool)
    begins_word[first_bytes[np.cumsum(word_lengths) - word_lengths]] = True
    token_starts = np.cumsum(token_bytes) - token_bytes
    unit_starts = begins_word[token_starts]
    return Alignment(
        unit_starts=unit_starts,
        token_lengths=np.add.reduceat(begins_character, token_starts, dtype=np.int64),
        unit_lengths=np.add.reduceat(begins_character, token_starts[unit_starts], dtype=np.int64),
        num_characters=len(text),
        num_words=len(word_lengths),
    )
