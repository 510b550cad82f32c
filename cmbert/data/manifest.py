"""What a reader needs of a shard set's manifest (docs/shard_format.md), and what in one cannot be. Torch-free."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cmbert.data.megatron import IDX_HEADER
from cmbert.errors import ShardError
from cmbert.files import file_size, patiently
from cmbert.json_types import misfit


class FileTexts(TypedDict):
    """A word about each file of a shard."""

    bin: str
    idx: str
    words: str


class FileSizes(TypedDict):
    """Bytes of each file of a shard."""

    bin: int
    idx: int
    words: int


class GuardedTexts(TypedDict):
    """A word about each file that is checked block by block."""

    bin: str
    words: str


class ShardEntry(TypedDict):
    """What a manifest says of a shard."""

    name: str
    documents: int
    tokens: int
    units: int
    bytes: FileSizes
    blake2b: FileTexts
    crc32: NotRequired[GuardedTexts]


class TokenizerEntry(TypedDict):
    """What a manifest says of the tokenizer."""

    fingerprint: str
    vocab_size: int


class Manifest(TypedDict):
    """What a reader needs of a manifest; what `data_tools` adds is data_tools.manifest's."""

    tokenizer: TokenizerEntry
    shards: list[ShardEntry]
    totals: NotRequired[dict[str, int]]
    sources: NotRequired[dict[str, dict[str, int]]]
    straddle: NotRequired[dict[str, float]]


def manifest_fault(manifest: Any) -> str | None:
    """Return what of a manifest is missing, of another type or cannot be, in one line, or None."""
    return misfit(manifest, Manifest) or _entry_fault(manifest["shards"])


def _entry_fault(shards: list[ShardEntry]) -> str | None:
    for index, entry in enumerate(shards):
        name, documents, tokens, size = entry["name"], entry["documents"], entry["tokens"], entry["bytes"]
        if not name.isprintable() or name in ("", ".", "..") or "/" in name:
            return f"shards[{index}].name: {name!r} is no name of a file"
        if documents > tokens or size["bin"] not in (2 * tokens, 4 * tokens) or size["words"] != -(-tokens // 8):
            return f"shards[{index}]: {documents} documents, {tokens} tokens and bytes {size} do not fit together"
        if size["idx"] != IDX_HEADER.size + 12 * documents + 8 * (documents + 1):
            return f"shards[{index}]: {documents} documents and an index of {size['idx']} bytes do not fit together"
    name, count = (Counter(entry["name"] for entry in shards).most_common(1) or [("", 0)])[0]
    return f"shards: {name!r} is listed {count} times" if count > 1 else None


def check_size(path: Path, expected_bytes: int) -> None:
    """Raise ShardError unless `path` exists with exactly `expected_bytes`."""
    found = patiently(partial(file_size, path))
    if found is None:
        raise ShardError(f"{path}: missing, the manifest lists it; preprocess again")
    if found != expected_bytes:
        raise ShardError(
            f"{path}: {found} bytes, the manifest says {expected_bytes}: truncated or changed; preprocess again"
        )
