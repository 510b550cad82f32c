"""The steps of `clean` that datatrove does not have: our reader, Chinese rules, character shingles, records of drops.

Every step is a datatrove PipelineStep. A task's counts and samples go to DIR/RANK.json when the task is through.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from cmbert.files.whole import write_json
from data_tools.clean.config import CleanConfig, DuplicatesConfig, NormalizeConfig, QualityConfig
from data_tools.clean.decodability import damage
from data_tools.clean.markup import strip_html
from data_tools.clean.normalization import Removed, normalizer
from data_tools.clean.quality import code_points, drop_reason, gram_hashes
from data_tools.clean.report import SAMPLE_CHARACTERS, SAMPLES
from data_tools.input.readers import ByteRange, DocumentReader

HASHES = HashConfig(precision=64, hash_fc="sha1")
SIGNATURE_BLOCK = 2048  # shingles hashed at a time: 2 MB, whatever the text's length


class Read(PipelineStep):
    """Read the byte ranges of a task; a file that no task wrote, because nothing was left of it, is no error."""

    name = "cmbert reader"
    type = "reader"

    def __init__(
        self,
        ranges: Sequence[Sequence[ByteRange]],
        how: dict[str, Any] | None = None,
        source: str = "",
        skipped: Path | None = None,
        has_options: bool = True,
    ):
        super().__init__()
        self.ranges, self.how, self.source, self.skipped = ranges, how or {}, source, skipped
        self.has_options = has_options

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        ranges = [span for span in self.ranges[rank] if self.skipped or span.path.exists()]
        reader = DocumentReader(ranges, **self.how, has_options=self.has_options)
        for document in reader:
            yield Document(document.text, document.id, metadata={"source": self.source or document.source})
        if self.skipped and reader.skipped:
            write_json(self.skipped / f"{rank:05d}.json", reader.skipped)


class Decodable(BaseFilter):
    """Drop texts that were read in the wrong encoding, before the marks of that are removed."""

    name = "decodable"

    def __init__(self, config: CleanConfig, dropped: "DropRecorder"):
        super().__init__(dropped)
        self.config = config

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Return (keep, reason). What markup a text has does not count."""
        strips = self.config.normalize.strip_html
        reason = damage(strip_html(doc.text, lambda *_: None) if strips else doc.text, self.config.quality)
        return reason is None, reason or ""


class Normalize(PipelineStep):
    """Normalise texts; count what is taken out of them, by source."""

    name = "normalise"
    type = "formatter"

    def __init__(self, config: NormalizeConfig, folder: Path):
        super().__init__()
        self.config, self.folder = config, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents with their texts normalised."""
        normalize, removed = normalizer(self.config), dict[str, Removed]()
        for document in data:
            document.text = normalize(document.text, removed.setdefault(document.metadata["source"], Removed()))
            yield document
        write_json(self.folder / f"{rank:05d}.json", {source: vars(counts) for source, counts in removed.items()})


class ChineseQuality(BaseFilter):
    """Drop texts by the rules of `data_tools.clean.quality`, each with its reason."""

    name = "Chinese quality"

    def __init__(self, config: QualityConfig, dropped: "DropRecorder"):
        super().__init__(dropped)
        self.config = config

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Return (keep, reason)."""
        reason = drop_reason(doc.text, self.config)
        return reason is None, reason or ""


class DropRecorder:
    """What datatrove's filters write dropped documents to: counts and the first samples instead of all texts."""

    def __init__(self, folder: Path, reason: str = ""):
        self.folder, self.reason = folder, reason
        self.rank = 0
        self.counts: dict[str, Counter[str]] = {}
        self.samples: dict[str, dict[str, list[str]]] = {}

    def __enter__(self) -> "DropRecorder":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.counts:
            write_json(self.folder / f"{self.rank:05d}.json", {"counts": self.counts, "samples": self.samples})

    def write(self, document: Document, rank: int = 0) -> None:
        """Count one dropped document."""
        self.rank = rank
        source, reason = document.metadata["source"], self.reason or document.metadata["filter_reason"]
        self.counts.setdefault(source, Counter())[reason] += 1
        samples = self.samples.setdefault(source, {}).setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(document.text[:SAMPLE_CHARACTERS])


class CountKept(PipelineStep):
    """Count what is written, by source."""

    name = "count"
    type = "statistics"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents unchanged."""
        kept: dict[str, Counter[str]] = {}
        for document in data:
            counts = kept.setdefault(document.metadata["source"], Counter())
            counts.update(documents=1, characters=len(document.text), bytes=len(document.text.encode("utf-8")))
            yield document
        if kept:
            write_json(self.folder / f"{rank:05d}.json", kept)


class Characters(WordTokenizer):
    """A text's characters as its words; datatrove's own tokenizers each need a language's package."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the characters."""
        return list(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the lines."""
        return text.split("\n")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the bounds of the characters."""
        return [(index, index + 1) for index in range(len(text))]


class ShingleSignature(MinhashDedupSignature):
    """datatrove's MinHash over runs of characters: a text without spaces has no words to shingle."""

    name = "MinHash of character shingles"

    def __init__(self, folder: str, config: DuplicatesConfig):
        super().__init__(folder, minhash_config(config), language=Characters())

    def get_shingles(self, text: str) -> np.ndarray:
        """Return the hashes of all shingles of letters and digits, each once, shape (shingles, 1), uint64."""
        letters = code_points("".join(filter(str.isalnum, text.lower())))
        return np.unique(gram_hashes(letters, self.config.n_grams)).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Return the signature, one list of hashes per bucket; in blocks, since a book has a million shingles."""
        blocks = [
            super(ShingleSignature, self).get_signature(shingles[first : first + SIGNATURE_BLOCK])
            for first in range(0, len(shingles), SIGNATURE_BLOCK)
        ]
        return np.array(blocks, dtype=np.uint64).min(axis=0).tolist()


def minhash_config(config: DuplicatesConfig) -> MinhashConfig:
    """Return datatrove's configuration of the same numbers."""
    return MinhashConfig(
        n_grams=config.shingle_characters,
        num_buckets=config.num_buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        hash_config=HASHES,
    )


def as_record(self: Any, document: Document) -> dict[str, str]:
    """Adapter of datatrove's writer: our JSON lines."""
    return {"id": document.id, "source": document.metadata["source"], "text": document.text}


def text_of(document: Document) -> str:
    """What exact duplicates have in common."""
    return document.text
