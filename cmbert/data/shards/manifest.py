"""manifest.json of a shard set (docs/shard_format.md): written last, and proved when it is read. Torch-free."""

import os.path
import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cmbert.data.shards.megatron import IDX_HEADER
from cmbert.errors import ShardError
from cmbert.files.json_types import misfit, read_as
from cmbert.files.operations import file_size, patiently
from cmbert.files.whole import write_json

FORMAT_NAME = "cmbert-shards"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


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
    special_ids: NotRequired[list[int]]
    """What no shard holds; without it the ids 0 to 4 (tokenizers made here)."""


class Manifest(TypedDict):
    """What a reader needs of a manifest; what `data_tools` adds is data_tools.encoding.manifest's."""

    tokenizer: TokenizerEntry
    shards: list[ShardEntry]
    totals: NotRequired[dict[str, int]]
    sources: NotRequired[dict[str, dict[str, int]]]
    straddle: NotRequired[dict[str, float]]
    decontamination: NotRequired[dict[str, int]]
    """Evaluation sets whose texts were looked for, and the documents dropped for each; without it that is not known."""


def write_manifest(directory: Path, manifest: dict) -> None:
    """Write `directory`/manifest.json, last of all files: without it the directory is not a shard set."""
    write_json(directory / MANIFEST_FILE, {"format": FORMAT_NAME, "version": FORMAT_VERSION, **manifest})


def read_manifest(directory: Path) -> dict:
    """Read and check `directory`/manifest.json. Raises ShardError when it is missing, torn or of another format."""
    path = directory / MANIFEST_FILE
    manifest = read_as(path, Any, error=ShardError, remedy="preprocess again")
    if manifest is None and file_size(path) is None:
        raise ShardError(f"{directory}: {_no_shard_set(directory)}")
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise ShardError(
            f"{path}: format {found[0]!r} version {found[1]!r}, expected {FORMAT_NAME!r} version {FORMAT_VERSION}"
        )
    if fault := manifest_fault(manifest):
        raise ShardError(f"{path}: {fault}; damaged, preprocess again")
    return manifest


def _no_shard_set(directory: Path) -> str:
    """Return what stands where a shard set should, and how to make one there, or of what is there."""
    if not os.path.lexists(directory):
        command = f"data_tools preprocess --input TEXT --tokenizer TOKENIZER --output {shlex.quote(str(directory))}"
        return f"not a shard set: nothing is there; make one of your text: `{command}`"
    command = f"data_tools preprocess --input {shlex.quote(str(directory))} --tokenizer TOKENIZER --output SHARDS"
    return (
        f"not a shard set (no {MANIFEST_FILE}); if it is text, make a shard set of it in another folder and name that: "
        f"`{command}`"
    )


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
