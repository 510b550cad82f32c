"""What a shard set's manifest says beside its shards: counts, histograms, straddle rate; and the seal on all of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from cmbert.data.shards.manifest import FORMAT_NAME, FORMAT_VERSION, MANIFEST_FILE, ShardEntry, TokenizerEntry
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ShardError
from cmbert.files.json_types import misfit
from data_tools.encoding.align import Alignment

UNIT_LENGTH_BINS = 9  # 0 to 7 characters, and 8 or more; 0 stays empty
TOKEN_LENGTH_BINS = 17  # 0 (inside a character) to 15 characters, and 16 or more
SEAL = "manifest_blake2b"
COUNTS = ("documents", "tokens", "text_bytes")


def histogram(lengths: np.ndarray, num_bins: int) -> np.ndarray:
    """Count lengths; the last bin takes everything longer. Shape (num_bins,), int64."""
    return np.bincount(np.minimum(lengths, num_bins - 1), minlength=num_bins).astype(np.int64)


class Counts(TypedDict):
    """Of a source."""

    documents: int
    tokens: int
    text_bytes: int


class Totals(Counts):
    """Of a set."""

    characters: int
    units: int
    unknown_tokens: NotRequired[int]
    """[UNK]; only of tokenizers that make them."""


class Segmenter(TypedDict):
    """Who cut the words."""

    name: str
    version: str
    dictionary_hash: str


class Straddle(TypedDict):
    """Word boundaries inside tokens."""

    word_boundaries: int
    lost: int
    rate: float


class Histogram(TypedDict):
    """Counts by length."""

    counts: list[int]


class WholeManifest(TypedDict):
    """A manifest with all that `preprocess` writes into it."""

    tokenizer: TokenizerEntry
    shards: list[ShardEntry]
    segmenter: Segmenter
    normalizer: Any
    sources: dict[str, Counts]
    totals: Totals
    skipped_lines: dict[str, int]
    decontamination: NotRequired[dict[str, int]]
    straddle: Straddle
    token_length_histogram: Histogram
    unit_length_histogram: Histogram


def whole_fault(manifest: dict[str, Any]) -> str | None:
    """Return what the commands of this package miss in a manifest, in one line, or None."""
    if fault := misfit(manifest, WholeManifest):
        return fault
    for name, bins in (("token", TOKEN_LENGTH_BINS), ("unit", UNIT_LENGTH_BINS)):
        if (found := len(manifest[f"{name}_length_histogram"]["counts"])) != bins:
            return f"{name}_length_histogram.counts: {found} counts, must be {bins}"
    return None


def whole_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a set that `preprocess` or `merge` made. Raises ShardError, for Megatron pairs, too."""
    shards = ShardSet(directory)
    if not shards.manifest:
        raise ShardError(f"{directory}: a Megatron pair without a manifest; preprocess its text instead")
    if fault := whole_fault(shards.manifest):
        raise ShardError(f"{directory / MANIFEST_FILE}: {fault}; damaged; remove the set and preprocess again")
    return shards.manifest


@dataclass
class Tally:
    """Counts of a set, or of a part of it; parts add up."""

    sources: dict[str, Counter[str]] = field(default_factory=dict)
    """Per source: documents, tokens, text_bytes (UTF-8 of the normalised text)."""
    characters: int = 0
    units: int = 0
    word_boundaries: int = 0
    """Between two words of one document; several in text that no token shows count once."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Input lines without a usable text, by reason."""
    token_lengths: np.ndarray = field(default_factory=lambda: np.zeros(TOKEN_LENGTH_BINS, np.int64))
    unit_lengths: np.ndarray = field(default_factory=lambda: np.zeros(UNIT_LENGTH_BINS, np.int64))
    unknown_tokens: int | None = None
    """[UNK]; None = the tokenizer makes none."""

    def count_document(self, source: str, tokens: int, text_bytes: int) -> None:
        """Count one document under its source."""
        counts = self.sources.setdefault(source, Counter())
        counts["documents"] += 1
        counts["tokens"] += tokens
        counts["text_bytes"] += text_bytes

    def count_alignment(self, alignment: Alignment, num_documents: int) -> None:
        """Count the tokens, units and words of a batch."""
        self.characters += alignment.num_characters
        self.units += len(alignment.unit_lengths)
        self.word_boundaries += alignment.num_words - num_documents
        self.token_lengths += histogram(alignment.token_lengths, TOKEN_LENGTH_BINS)
        self.unit_lengths += histogram(alignment.unit_lengths, UNIT_LENGTH_BINS)

    def add(self, other: "Tally") -> None:
        """Add the counts of another part."""
        for source, counts in other.sources.items():
            self.sources.setdefault(source, Counter()).update(counts)
        self.characters += other.characters
        self.units += other.units
        self.word_boundaries += other.word_boundaries
        self.skipped.update(other.skipped)
        self.token_lengths += other.token_lengths
        self.unit_lengths += other.unit_lengths
        if other.unknown_tokens is not None:
            self.unknown_tokens = (self.unknown_tokens or 0) + other.unknown_tokens

    def total(self, count: str) -> int:
        """Return documents, tokens or text_bytes over all sources."""
        return sum(counts[count] for counts in self.sources.values())

    def lost_boundaries(self) -> int:
        """Return how many word boundaries lie inside a token.

        A unit begins at every document and at every boundary that is kept, so what is missing was lost.
        """
        return self.word_boundaries + self.total("documents") - self.units

    def as_manifest(self) -> dict[str, Any]:
        """Return the manifest's entries."""
        lost = self.lost_boundaries()
        return {
            "sources": {name: {count: self.sources[name][count] for count in COUNTS} for name in sorted(self.sources)},
            "totals": {
                **{count: self.total(count) for count in COUNTS},
                "characters": self.characters,
                "units": self.units,
                **({} if self.unknown_tokens is None else {"unknown_tokens": self.unknown_tokens}),
            },
            "skipped_lines": dict(sorted(self.skipped.items())),
            "straddle": {
                "word_boundaries": self.word_boundaries,
                "lost": lost,
                "rate": round(lost / max(self.word_boundaries, 1), 4),  # four places never need an exponent
            },
            "token_length_histogram": {
                "unit": "characters beginning in the token, from 0 (inside a character); last entry: that or more",
                "counts": self.token_lengths.tolist(),
            },
            "unit_length_histogram": {
                "unit": "characters, from 0; last entry: that or more",
                "counts": self.unit_lengths.tolist(),
            },
        }

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> "Tally":
        """Return the counts that `as_manifest` wrote."""
        return cls(
            sources={name: Counter(counts) for name, counts in manifest["sources"].items()},
            characters=manifest["totals"]["characters"],
            units=manifest["totals"]["units"],
            word_boundaries=manifest["straddle"]["word_boundaries"],
            skipped=Counter(manifest["skipped_lines"]),
            token_lengths=np.array(manifest["token_length_histogram"]["counts"], dtype=np.int64),
            unit_lengths=np.array(manifest["unit_length_histogram"]["counts"], dtype=np.int64),
            unknown_tokens=manifest["totals"].get("unknown_tokens"),
        )


def decontamination(found: Iterable[Mapping[str, int] | None]) -> dict[str, Any]:
    """Return the manifest's entry on evaluation sets: those of which all parts of a shard set were cleaned.

    found: for each part the documents dropped by set, None where no cleaning is on record.
    """
    parts = list(found)
    if not parts or None in parts:
        return {}
    names = [name for name in parts[0] or {} if all(part and name in part for part in parts)]
    dropped = {name: sum(part[name] for part in parts if part) for name in names}
    return {"decontamination": dropped} if dropped else {}


def seal(manifest: dict[str, Any]) -> str:
    """Return the BLAKE2b-256 hash of a manifest's canonical JSON, format and version in it, the seal itself not.

    It is kept in the manifest under SEAL, so that a changed count is found as a changed shard is.
    """
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **manifest}
    content.pop(SEAL, None)
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(canonical.encode("utf-8"), digest_size=32).hexdigest()


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return `manifest` with its seal."""
    return {**manifest, SEAL: seal(manifest)}
