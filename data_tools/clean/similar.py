"""Near duplicates: MinHash over runs of characters, and what was kept instead of the samples that the report shows."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from cmbert.files.whole import write_json
from data_tools.clean.config import SAMPLE_CHARACTERS, DuplicatesConfig
from data_tools.clean.report import TWINS_FILE, read_dropped
from data_tools.clean.steps import COMPARED_CHARACTERS, HASHES
from data_tools.clean.text.quality import code_points, gram_hashes

SIGNATURE_BLOCK = 64  # shingles hashed at a time: with 112 hashes 57 kB, which stay in a core's cache
MERSENNE = np.uint64((1 << 61) - 1)  # datatrove's hashes are those modulo this prime
MERSENNE_BITS = np.uint64(61)
Place = tuple[int, int]  # task, number of the document among those that MinHash saw of it


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
        """Return the hashes of all shingles of letters and digits, shape (shingles, 1), uint64."""
        return shingles(text, self.config.n_grams).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Return the signature, one list of hashes per bucket: datatrove's, whose division takes most of its time.

        x modulo 2^61 - 1 is the sum of x's upper and lower bits, less the prime where the sum reaches it.
        """
        factors, summands = self.parameters
        lowest = np.full(factors.shape[1], MERSENNE, dtype=np.uint64)
        for first in range(0, len(shingles), SIGNATURE_BLOCK):
            hashes = shingles[first : first + SIGNATURE_BLOCK] * factors
            hashes += summands
            upper = hashes >> MERSENNE_BITS
            hashes &= MERSENNE
            hashes += upper
            np.subtract(hashes, MERSENNE, out=upper)  # wraps to something larger where the sum is smaller
            np.minimum(hashes, upper, out=hashes)
            np.minimum(lowest, hashes.min(axis=0), out=lowest)
        return lowest.reshape(self.config.num_buckets, -1).tolist()


def shingles(text: str, length: int) -> np.ndarray:
    """Return the hashes of all runs of `length` letters and digits, shape (shingles,), uint64."""
    return gram_hashes(code_points("".join(filter(str.isalnum, text.lower()))), length)


def minhash_config(config: DuplicatesConfig) -> MinhashConfig:
    """Return datatrove's configuration of the same numbers."""
    return MinhashConfig(
        n_grams=config.shingle_characters,
        num_buckets=config.num_buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        hash_config=HASHES,
    )


def write_twins(work: Path, texts: Callable[[], Sequence[PipelineStep]], config: DuplicatesConfig) -> None:
    """Write, of each sample of a near duplicate, what was kept: id, text and the share of their shingles in common.

    texts: returns the steps that read what MinHash saw. The file: a list for every source, in the samples' order.
    """
    _, by_source = read_dropped(work / "dropped_near")
    samples = {source: found["near_duplicate"] for source, found in by_source.items()}
    clusters = {sample["cluster"] for found in samples.values() for sample in found}
    kept = kept_places(work / "near", clusters) if clusters else {}
    documents = read_places(texts, set(kept.values()))

    def twin(sample: dict[str, Any]) -> dict[str, Any]:
        document = documents[kept[sample["cluster"]]]
        share = similarity(sample["whole"], document.text[:COMPARED_CHARACTERS], config.shingle_characters)
        return {"id": document.id, "text": document.text[:SAMPLE_CHARACTERS], "shared": round(share, 4)}

    write_json(work / TWINS_FILE, {source: [twin(sample) for sample in found] for source, found in samples.items()})


def kept_places(folder: Path, clusters: Iterable[int]) -> dict[int, Place]:
    """Return where the one text of each cluster is that is not removed."""
    wanted, found = np.array(sorted(clusters), dtype=np.uint32), dict[int, Place]()
    for path in sorted(folder.glob("*.clusters")):
        members = np.fromfile(path, dtype=np.uint32).reshape(-1, 2)  # document, cluster
        members = members[np.isin(members[:, 1], wanted)]
        removals = path.with_suffix(".remove")
        removed = np.fromfile(removals, dtype=np.uint32) if removals.exists() else np.zeros(0, np.uint32)
        stays = members[~np.isin(members[:, 0], removed)]
        found |= {cluster: (int(path.stem), document) for document, cluster in stays.tolist()}
    return found


def read_places(texts: Callable[[], Sequence[PipelineStep]], places: set[Place]) -> dict[Place, Document]:
    """Return the documents at `places`; of each task as much is read as it takes."""
    found: dict[Place, Document] = {}
    for rank in sorted({rank for rank, _ in places}):
        numbers = {number for task, number in places if task == rank}
        data: Any = None
        for step in texts():
            data = step(data, rank, 1)
        passing = enumerate(islice(data, max(numbers) + 1))
        found |= {(rank, number): document for number, document in passing if number in numbers}
    return found


def similarity(one: str, other: str, shingle_characters: int) -> float:
    """Return the share of the shingles of both texts that are in both (Jaccard), which MinHash estimates."""
    first, second = (np.unique(shingles(text, shingle_characters)) for text in (one, other))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)
