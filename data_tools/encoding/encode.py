"""Documents -> tokens and word units, a batch at a time, with their counts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from cmbert.data.shards.layout import token_dtype
from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.align import align
from data_tools.encoding.encoders import batch_encoder, normalize
from data_tools.encoding.manifest import Tally
from data_tools.encoding.segment import segmenter
from data_tools.input.document import Document

BATCH_CHARACTERS = 400_000  # about 1 MB of Chinese UTF-8, a fraction of a second of work

NOT_ENCODABLE = "not_encodable"  # what a document that no encoder takes is counted as


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
        self.encoder = batch_encoder(self.tokenizer)
        self.token_bytes = self.tokenizer.token_byte_lengths()
        self.dtype = token_dtype(self.tokenizer.vocab_size)

    def __call__(self, documents: Sequence[Document]) -> EncodedBatch:
        """Encode, segment and align. Raises ConfigError when the tokenizer is not lossless."""
        texts = [normalize(self.tokenizer, document.text) for document in documents]
        kept = [(document, text) for document, text in zip(documents, texts, strict=True) if text]
        tally = Tally()
        if len(kept) < len(texts):
            tally.skipped["empty_text"] += len(texts) - len(kept)
        tokens, lengths, refusals = self.encoder.encode([text for _, text in kept])
        refused = tuple((kept[number][0], said) for number, said in sorted(refusals.items()))
        kept = [pair for number, pair in enumerate(kept) if number not in refusals]
        if not kept:
            return EncodedBatch(np.zeros(0, self.dtype), np.zeros(0, np.int64), np.zeros(0, bool), tally, refused)
        lengths = np.delete(lengths, list(refusals))
        words = [self.segmenter.cut(text) for _, text in kept]
        word_lengths = np.fromiter(map(len, chain.from_iterable(words)), dtype=np.int64)
        alignment = align("".join(text for _, text in kept), word_lengths, self.token_bytes[tokens])
        tally.count_alignment(alignment, len(word_lengths), len(kept))
        for (document, text), length in zip(kept, lengths.tolist(), strict=True):
            tally.count_document(document.source, length, len(text.encode("utf-8")))
        return EncodedBatch(tokens.astype(self.dtype), lengths, alignment.unit_starts, tally, refused)


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
