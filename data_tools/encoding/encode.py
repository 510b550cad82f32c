"""Documents -> tokens and word units, a batch at a time, with their counts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from cmbert.data.shards.layout import token_dtype
from cmbert.errors import ConfigError
from cmbert.tokenizer import TOKENIZER_FILE, load_tokenizer
from data_tools.encoding.align import align
from data_tools.encoding.encoders import batch_encoder, normalize, offset_encoder
from data_tools.encoding.manifest import Tally
from data_tools.encoding.offsets import align_offsets
from data_tools.encoding.segment import segmenter
from data_tools.input.document import Document

BATCH_CHARACTERS = 400_000  # about 1 MB of Chinese UTF-8, a fraction of a second of work

NOT_ENCODABLE = "not_encodable"  # what a document that no encoder takes is counted as
NO_TOKENS = "no_tokens"  # and one of which the tokenizer drops every character


@dataclass(frozen=True)
class EncodedBatch:
    """Documents as they are written, and their counts."""

    tokens: np.ndarray  # (tokens,) ids
    lengths: np.ndarray  # (documents,) tokens, int64
    unit_starts: np.ndarray  # (tokens,) bool
    tally: Tally
    refused: tuple[tuple[Document, str], ...] = ()
    """Documents that no encoder takes, and why; they are in none of the above."""


class DocumentEncoder:
    """Turn a batch of documents into tokens and units; each worker process makes its own."""

    def __init__(self, tokenizer_directory: Path, segmenter_name: str):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism: one core each
        os.environ["RAYON_NUM_THREADS"] = "1"
        self.tokenizer = load_tokenizer(tokenizer_directory)
        self.segmenter = segmenter(segmenter_name)
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.is_byte_level = self.tokenizer.is_byte_level
        self.counts_unknown = not self.is_byte_level and self.tokenizer.vocabulary.unk_id is not None
        if self.is_byte_level:
            self.encoder = batch_encoder(self.tokenizer)
            self.token_bytes = self.tokenizer.token_byte_lengths()
        else:
            self.encoder = offset_encoder(self.tokenizer)

    def __call__(self, documents: Sequence[Document]) -> EncodedBatch:
        """Encode, segment and align. Raises ConfigError when the tokenizer makes special tokens of text."""
        texts = [self.prepare(document.text) for document in documents]
        kept = [(document, text) for document, text in zip(documents, texts, strict=True) if text]
        tally = Tally(unknown_tokens=0 if self.counts_unknown else None)
        if len(kept) < len(texts):
            tally.skipped["empty_text"] += len(texts) - len(kept)
        encoded = self.encoder.encode([text for _, text in kept])
        refused = tuple((kept[number][0], said) for number, said in sorted(encoded.refused.items()))
        if without := int(np.count_nonzero(encoded.lengths == 0)) - len(refused):
            tally.skipped[NO_TOKENS] += without
        kept = [pair for pair, length in zip(kept, encoded.lengths.tolist(), strict=True) if length]
        if not kept:
            return EncodedBatch(np.zeros(0, self.dtype), np.zeros(0, np.int64), np.zeros(0, bool), tally, refused)
        lengths = encoded.lengths[encoded.lengths > 0]
        tokens = encoded.ids if self.is_byte_level else self._as_text(encoded.ids)
        if self.counts_unknown:
            tally.unknown_tokens = int(np.count_nonzero(tokens == self.tokenizer.vocabulary.unk_id))
        words = [self.segmenter.cut(text) for _, text in kept]
        word_lengths = np.fromiter(map(len, chain.from_iterable(words)), dtype=np.int64)
        if self.is_byte_level:
            alignment = align("".join(text for _, text in kept), word_lengths, self.token_bytes[tokens])
        else:
            characters = np.array([len(text) for _, text in kept], dtype=np.int64)
            alignment = align_offsets(characters, word_lengths, lengths, encoded.offsets)
        tally.count_alignment(alignment, len(kept))
        for (document, text), length in zip(kept, lengths.tolist(), strict=True):
            tally.count_document(document.source, length, len(text.encode("utf-8")))
        return EncodedBatch(tokens.astype(self.dtype), lengths, alignment.unit_starts, tally, refused)

    def prepare(self, text: str) -> str:
        """Return what is encoded and cut into words: normalised text, or as it is where offsets place the tokens."""
        return normalize(self.tokenizer, text) if self.is_byte_level else text

    def _as_text(self, ids: np.ndarray) -> np.ndarray:
        """Return `ids` with [UNK] for special tokens that stand for text: some tokenizers look "[MASK]" up as a word.

        Raises ConfigError where a tokenizer has no [UNK].
        """
        vocabulary = self.tokenizer.vocabulary
        special = ~vocabulary.is_ordinary[ids]
        if vocabulary.unk_id is not None:
            return np.where(special, np.uint32(vocabulary.unk_id), ids)
        if special.any():
            name = self.tokenizer.backend.id_to_token(int(ids[special][0]))
            raise ConfigError(
                f"{self.tokenizer.directory / TOKENIZER_FILE}: makes its special token {name} of text that spells it; "
                "take such text out of the input"
            )
        return ids


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents by BATCH_CHARACTERS."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
