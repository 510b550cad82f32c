"""`preprocess`: documents -> shards of token ids with word units, the same bytes for any number of workers."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.data.shards import MANIFEST_FILE, ShardWriter, token_dtype, write_manifest
from cmbert.errors import InputError
from cmbert.progress import Progress
from cmbert.tokenizer import Tokenizer, load_tokenizer
from data_tools.align import align
from data_tools.defaults import SHARD_TOKENS
from data_tools.document import Document
from data_tools.manifest import Tally, sealed
from data_tools.outputs import building, describe_inputs, is_done
from data_tools.readers import DocumentReader, input_files
from data_tools.runner import ordered_map
from data_tools.segment import segmenter

BATCH_CHARACTERS = 400_000  # ours: about 1 MB of Chinese UTF-8, a fraction of a second of work


@dataclass(frozen=True)
class EncodedBatch:
    """Documents as they are written, and their counts."""

    tokens: np.ndarray  # (tokens,) ids
    lengths: np.ndarray  # (documents,) tokens, int64
    unit_starts: np.ndarray  # (tokens,) bool
    tally: Tally


class Encoder:
    """Turn a batch of documents into tokens and units; each worker process makes its own."""

    def __init__(self, tokenizer_directory: Path, segmenter_name: str):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism: one core each
        self.tokenizer = load_tokenizer(tokenizer_directory)
        self.segmenter = segmenter(segmenter_name)
        self.token_bytes = self.tokenizer.token_byte_lengths()
        self.dtype = token_dtype(self.tokenizer.vocab_size)

    def __call__(self, documents: Sequence[Document]) -> EncodedBatch:
        """Encode, segment and align. Raises ConfigError when the tokenizer is not lossless."""
        texts = [self.tokenizer.normalize(document.text) for document in documents]
        kept = [(document.source, text) for document, text in zip(documents, texts, strict=True) if text]
        tally = Tally()
        if len(kept) < len(texts):
            tally.skipped["empty_text"] += len(texts) - len(kept)
        if not kept:
            return EncodedBatch(np.zeros(0, self.dtype), np.zeros(0, np.int64), np.zeros(0, bool), tally)
        texts = [text for _, text in kept]
        encoded = self.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encoded]
        lengths = np.array([len(part) for part in ids])
        tokens = np.fromiter(chain.from_iterable(ids), dtype=self.dtype, count=lengths.sum())
        words = [self.segmenter.cut(text) for text in texts]
        word_lengths = np.fromiter(map(len, chain.from_iterable(words)), dtype=np.int64)
        alignment = align("".join(texts), word_lengths, self.token_bytes[tokens])
        tally.count_alignment(alignment, len(word_lengths), len(texts))
        for (source, text), length in zip(kept, lengths.tolist(), strict=True):
            tally.count_document(source, length, len(text.encode("utf-8")))
        return EncodedBatch(tokens, lengths, alignment.unit_starts, tally)


class ShardSetWriter:
    """Write batches into shards of at most `shard_tokens` tokens; a longer document has a shard of its own."""

    def __init__(self, directory: Path, dtype: np.dtype, shard_tokens: int):
        self.directory, self.dtype, self.shard_tokens = directory, dtype, shard_tokens
        self.entries: list[dict] = []
        self._shard: ShardWriter | None = None

    def append(self, batch: EncodedBatch) -> None:
        """Add the documents of a batch."""
        ends = np.cumsum(batch.lengths)
        first = first_token = 0
        while first < len(ends):
            shard = self._shard or ShardWriter(self.directory, f"{len(self.entries):05d}", self.dtype)
            self._shard = shard
            room = self.shard_tokens - shard.num_tokens
            last = int(np.searchsorted(ends, first_token + room, side="right"))
            if shard.num_tokens == 0:
                last = max(last, first + 1)
            if last <= first:
                self.close()
                continue
            part = slice(first_token, int(ends[last - 1]))
            shard.append(batch.tokens[part], batch.lengths[first:last], batch.unit_starts[part])
            first, first_token = last, part.stop

    def close(self) -> None:
        """Finish the shard at hand and note its manifest entry."""
        if self._shard is not None:
            self.entries.append(self._shard.close())
            self._shard = None


def preprocess(
    inputs: Sequence[str],
    tokenizer_directory: Path,
    output: Path,
    *,
    segmenter_name: str = "auto",
    text_key: str = "text",
    on_bad_line: str = "fail",
    num_workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Make the shard set `output`, or say that it is there already.

    Raises InputError for unusable text, ConfigError for a wrong tokenizer or an output made with other settings.
    """
    files = input_files(inputs)
    tokenizer = load_tokenizer(tokenizer_directory)
    description = {"tokenizer": tokenizer_entry(tokenizer), "segmenter": segmenter(segmenter_name).describe()}
    options = {"text_key": text_key, "on_bad_line": on_bad_line, "shard_tokens": shard_tokens}
    settings = {"inputs": describe_inputs(files), **description, **options}
    if is_done(output, MANIFEST_FILE, settings):
        print(f"{output}: done already, with the same settings")
        return
    reader = DocumentReader(files, text_key=text_key, on_bad_line=on_bad_line)
    started = time.monotonic()
    with building(output) as aside:
        writer = ShardSetWriter(aside, token_dtype(tokenizer.vocab_size), shard_tokens)
        tally = Tally()
        encoder_arguments = (tokenizer_directory, description["segmenter"]["name"])  # "auto" is settled once
        for batch in encoded_batches(reader, encoder_arguments, num_workers):
            writer.append(batch)
            tally.add(batch.tally)
        writer.close()
        tally.skipped.update(reader.skipped)
        if not writer.entries:
            raise InputError(f"{', '.join(inputs)}: no document with text ({dict(tally.skipped)})")
        normalizer = {"normalizer": json.loads(tokenizer.backend.to_str())["normalizer"]}
        counts = tally.as_manifest()
        write_manifest(
            aside, sealed({**description, **normalizer, **counts, "shards": writer.entries, "settings": settings})
        )
    print(summary(output, tally, time.monotonic() - started))


def tokenizer_entry(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the manifest's entry of a tokenizer."""
    return {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}


def encoded_batches(reader: DocumentReader, arguments: tuple, num_workers: int) -> Iterator[EncodedBatch]:
    """Yield the reader's documents encoded, in their order, showing progress."""
    progress = Progress("preprocess", reader.total_bytes / 1e6, "MB")
    for batch in ordered_map(Encoder, arguments, batches(reader), num_workers):
        yield batch
        progress.advance(reader.bytes_read / 1e6 - progress.done)
    progress.close()


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents by BATCH_CHARACTERS; the groups depend on the documents alone."""
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


def summary(output: Path, tally: Tally, seconds: float) -> str:
    """Return one line on a finished set."""
    tokens, text_bytes = tally.total("tokens"), tally.total("text_bytes")
    skipped = f", {tally.skipped.total():,} lines skipped" if tally.skipped else ""
    return (
        f"{output}: {tally.total('documents'):,} documents, {tokens:,} tokens{skipped}, "
        f"{text_bytes / 1e6 / seconds:.1f} MB/s, {tally.characters / tokens:.2f} characters per token, "
        f"{100 * tally.lost_boundaries() / max(tally.word_boundaries, 1):.1f} % of word boundaries inside a token"
    )
