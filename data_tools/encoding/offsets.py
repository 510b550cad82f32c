"""Where maskable units begin when tokens do not spell the text: by the offsets that the encoder gives.

Other people's tokenizers lower-case, drop and add characters, so a token's own letters do not say where it lies. The
encoder does: each token comes with the characters of the text, as it was given, that it was made of. What no token was
made of (white space, control characters) belongs to no unit: a word that begins in it begins at the next token.
"""

import numpy as np

from data_tools.encoding.align import Alignment


def align_offsets(
    characters: np.ndarray, word_lengths: np.ndarray, lengths: np.ndarray, offsets: np.ndarray
) -> Alignment:
    """Align words and tokens of a batch.

    characters: of each document, shape (documents,). word_lengths: characters of each word, shape (words,). lengths:
    tokens of each document, at least one, shape (documents,). offsets: the first character of each token and the one
    behind its last, counted in its own document, shape (tokens, 2). All int64, all document by document.

    A token begins a unit when it begins at or behind all that the tokens before it cover, not at the same character as
    the one before it, and a word begins between that cover and its own first character. A document's first token
    always does.
    """
    total = int(characters.sum())
    assert word_lengths.sum() == total
    document_starts = np.cumsum(characters) - characters
    starts, ends = (offsets + np.repeat(document_starts, lengths)[:, np.newaxis]).T
    reached = np.append(0, np.maximum.accumulate(ends)[:-1])  # (tokens,) where the cover of the tokens before ends
    begins_word = np.zeros(total + 1, dtype=bool)
    begins_word[np.cumsum(word_lengths) - word_lengths] = True
    begins_word[document_starts] = False  # no boundary within a document
    words_before = np.append(0, np.cumsum(begins_word))  # (total + 2,) words that begin before each character
    unit_starts = (starts >= reached) & (words_before[starts + 1] > words_before[np.minimum(reached, starts)])
    unit_starts[1:] &= starts[1:] != starts[:-1]
    unit_starts[np.cumsum(lengths) - lengths] = True
    firsts = np.maximum(starts, reached)
    token_lengths = np.maximum(ends - firsts, 0)  # characters that no token before covers
    unit_lengths = np.add.reduceat(token_lengths, np.flatnonzero(unit_starts))
    # A boundary is lost where both its sides are covered and no unit begins; one beside a gap is never lost.
    edges = np.zeros(total + 1, dtype=np.int8)
    edges[firsts[token_lengths > 0]] += 1
    edges[ends[token_lengths > 0]] -= 1
    covered = np.cumsum(edges, dtype=np.int8) > 0
    inner = begins_word[1:] & covered[1:] & covered[:-1]
    inner[starts[unit_starts & (starts > 0)] - 1] = False
    return Alignment(
        unit_starts=unit_starts,
        token_lengths=token_lengths,
        unit_lengths=unit_lengths,
        num_characters=total,
        num_words=len(unit_lengths) + int(inner.sum()),
    )
