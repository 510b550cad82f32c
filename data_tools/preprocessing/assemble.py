"""Parts -> shards. A part is what one task made: a shard set of its own, so its reader, seal and hashes are those.

The shards follow from the documents alone: where the parts end, and who made them, does not show.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmbert.data.shards.layout import SHARD_SUFFIXES
from cmbert.data.shards.manifest import MANIFEST_FILE
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ShardError
from cmbert.files.operations import hash_file
from data_tools.encoding.manifest import SEAL, seal
from data_tools.outputs import naming
from data_tools.runner import Workers

COPY_TOKENS = 1 << 22  # what an assembling worker holds at a time


class Span(NamedTuple):
    """Documents [first, last) of one part."""

    part: Path
    first: int
    last: int


@dataclass(frozen=True)
class ShardPlan:
    """What one worker writes."""

    directory: Path
    name: str
    spans: tuple[Span, ...]


def assemble(parts: Sequence[Path], directory: Path, shard_tokens: int, workers: Workers) -> list[dict[str, Any]]:
    """Write the documents of `parts` into shards under `directory`; return the shards' manifest entries, in order.

    Raises ShardError when a part was damaged since it was written; it is removed, so that the next run makes it again.
    """
    spans = plan_shards(parts, shard_tokens)
    plans = (ShardPlan(directory, f"{index:05d}", spans) for index, spans in enumerate(spans))
    return sorted(workers.map_unordered(write_shard, plans), key=lambda entry: entry["name"])


def plan_shards(parts: Sequence[Path], shard_tokens: int) -> Iterator[tuple[Span, ...]]:
    """Yield what goes into each shard: at most `shard_tokens` tokens, but a longer document has a shard of its own.

    Memory is bounded by the document lengths of one part.
    """
    spans: list[Span] = []
    tokens = 0
    for part in parts:
        ends = np.cumsum(ShardSet(part).document_lengths())
        first = before = 0
        while first < len(ends):
            last = int(np.searchsorted(ends, before + shard_tokens - tokens, side="right"))
            if not spans:
                last = max(last, first + 1)
            if last > first:
                spans.append(Span(part, first, last))
                tokens += int(ends[last - 1]) - before
                first, before = last, int(ends[last - 1])
            if first < len(ends):  # the next document does not fit
                yield tuple(spans)
                spans, tokens = [], 0
    if spans:
        yield tuple(spans)


def write_shard(plan: ShardPlan) -> dict[str, Any]:
    """Write one shard and return its manifest entry. Raises ShardError for a damaged part."""
    writer: ShardWriter | None = None
    with naming(plan.directory):
        for part, first, last in plan.spans:
            check_part(part)
            shards = ShardSet(part)
            writer = writer or ShardWriter(plan.directory, plan.name, shards.token_dtype)
            while first < last:
                tokens, lengths, unit_starts = shards.read_documents(first, last, COPY_TOKENS)
                writer.append(tokens, lengths, unit_starts)
                first += len(lengths)
        assert writer is not None
        return writer.close()


def check_part(part: Path) -> None:
    """Remove a part whose files are not what its manifest says, and raise ShardError."""
    manifest = ShardSet(part).manifest
    (shard,) = manifest["shards"]
    hashes = {suffix: hash_file(part / f"{shard['name']}.{suffix}") for suffix in SHARD_SUFFIXES}
    if hashes != shard["blake2b"] or manifest[SEAL] != seal(manifest):
        shutil.rmtree(part)
        raise ShardError(f"{part / MANIFEST_FILE}: damaged since it was written; run the same command again")
