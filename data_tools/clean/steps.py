"""The steps of `clean` that datatrove does not have: our reader, Chinese rules, character shingles, records of drops.

Every step is a datatrove PipelineStep. A task's counts and samples go to DIR/RANK.json when the task is through.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import ExactDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.hashing import HashConfig

from cmbert.files.whole import write_json
from data_tools.clean.config import SAMPLE_CHARACTERS, SAMPLES, CleanConfig, NormalizeConfig, QualityConfig
from data_tools.clean.text.decodability import damage
from data_tools.clean.text.markup import strip_html
from data_tools.clean.text.normalization import Removed, normalizer
from data_tools.clean.text.quality import drop_reason, measured
from data_tools.input.readers import ByteRange, DocumentReader

HASHES = HashConfig(precision=64, hash_fc="sha1")
CLUSTER = "minhash_cluster_id"  # datatrove's name in a document's metadata: near duplicates of each other
COMPARED_CHARACTERS = 20_000  # of a sample and the text that was kept instead
TEXT_FILE = "{:05d}.jsonl.zst"  # of a task
WORK_LEVEL = 1  # zstd, of texts that are read again and removed: a quarter of the time of OUTPUT_LEVEL
OUTPUT_LEVEL = 10  # zstd; datatrove's (fsspec's), so that an output's bytes are those of earlier versions


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
        ranges = [
            span for span in self.ranges[rank] if self.skipped or not isinstance(span.path, Path) or span.path.exists()
        ]
        reader = DocumentReader(ranges, **self.how, has_options=self.has_options)
        for document in reader:
            yield Document(document.text, document.id, metadata={"source": self.source or document.source})
        if self.skipped and reader.skipped:
            write_json(self.skipped / f"{rank:05d}.json", reader.skipped)


class Reread(PipelineStep):
    """Read what `WriteTexts` wrote: nothing, where a task had no text left."""

    name = "reader of its own texts"
    type = "reader"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        path = self.folder / TEXT_FILE.format(rank)
        if not path.exists():
            return
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            for line in io.BufferedReader(stream):
                record = orjson.loads(line)
                yield Document(record["text"], record["id"], metadata={"source": record["source"]})


class WriteTexts(PipelineStep):
    """Write the documents of task `rank` as JSON lines, zstd; no file where there are none."""

    name = "cmbert writer"
    type = "writer"

    def __init__(self, folder: Path, level: int):
        super().__init__()
        self.folder, self.level = folder, level

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents, written."""
        stream = None
        try:
            for document in data:
                if stream is None:
                    file = open(self.folder / TEXT_FILE.format(rank), "wb")  # closed with the stream
                    stream = zstandard.ZstdCompressor(level=self.level).stream_writer(file)
                stream.write(orjson.dumps(as_record(None, document), option=orjson.OPT_APPEND_NEWLINE))
                yield document
        finally:
            if stream is not None:
                stream.close()


class HashTexts(ExactDedupSignature):
    """datatrove's hashes of whole texts, taken as they pass by: no text is read once more for it."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents, hashed; write the hashes after the last."""
        signatures = []
        for index, document in enumerate(data):
            signatures += self.get_hashes(document, index)
            yield document
        self.save_hashes(rank, signatures)


class Decodable(BaseFilter):
    """Drop texts that were read in the wrong encoding, before the marks of that are removed. Markup does not count."""

    name = "decodable"

    def __init__(self, config: CleanConfig, dropped: "DropRecorder"):
        super().__init__(dropped)
        self.config = config

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Return (keep, reason)."""
        text = strip_html(doc.text, lambda *_: None) if self.config.normalize.strip_html else doc.text
        reason = damage(text, self.config.quality)
        if reason:
            doc.metadata["measured"] = measured(text, reason)
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
    """Drop texts by the rules of `data_tools.clean.text.quality`, each with its reason."""

    name = "Chinese quality"

    def __init__(self, config: QualityConfig, dropped: "DropRecorder"):
        super().__init__(dropped)
        self.config = config

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Return (keep, reason)."""
        reason = drop_reason(doc.text, self.config)
        if reason:
            doc.metadata["measured"] = measured(doc.text, reason)
        return reason is None, reason or ""


class DropRecorder:
    """What datatrove's filters write dropped documents to: counts and the first samples instead of all texts.

    A sample: id, the text's start, what was measured; of a near duplicate more, until `twins` has found what was kept.
    """

    def __init__(self, folder: Path, reason: str = ""):
        self.folder, self.reason = folder, reason
        self.rank = 0
        self.counts: dict[str, Counter[str]] = {}
        self.samples: dict[str, dict[str, list[dict[str, Any]]]] = {}

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
            sample = {"id": document.id, "text": document.text[:SAMPLE_CHARACTERS]}
            if "measured" in document.metadata:
                sample["measured"] = round(document.metadata["measured"], 4)
            if CLUSTER in document.metadata:
                sample |= {"cluster": document.metadata[CLUSTER], "whole": document.text[:COMPARED_CHARACTERS]}
            samples.append(sample)


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


def as_record(self: Any, document: Document) -> dict[str, str]:
    """Adapter of datatrove's writer: our JSON lines."""
    return {"id": document.id, "source": document.metadata["source"], "text": document.text}


def text_of(document: Document) -> str:
    """What exact duplicates have in common."""
    return document.text
