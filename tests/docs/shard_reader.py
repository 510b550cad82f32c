"""A reader of shard sets written from docs/shard_format.md alone: plain Python, nothing of this package."""

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<9sQBQQ")
ID_FORMATS = {8: "H", 4: "i"}
BLOCK_BYTES = 4 * 1024 * 1024


def read_documents(folder: Path) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield the ids of every document of a set, and which tokens begin a unit."""
    manifest = _read_manifest(folder)
    for shard in manifest["shards"]:
        raw = {suffix: (folder / f"{shard['name']}.{suffix}").read_bytes() for suffix in ("bin", "idx", "words")}
        _check_files(shard, raw)
        yield from documents_of(shard, raw)


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["format"], manifest["version"]) == ("cmbert-shards", 1)
    seal = manifest.pop("manifest_blake2b")
    compact = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.blake2b(compact.encode("utf-8"), digest_size=32).hexdigest() == seal
    return manifest


def _check_files(shard: dict[str, Any], raw: dict[str, bytes]) -> None:
    for suffix, contents in raw.items():
        assert len(contents) == shard["bytes"][suffix]
        assert hashlib.blake2b(contents, digest_size=32).hexdigest() == shard["blake2b"][suffix]
    for suffix, encoded in shard["crc32"].items():
        checksums = base64.b64decode(encoded)
        expected = struct.unpack(f"<{len(checksums) // 4}I", checksums)
        blocks = range(0, len(raw[suffix]), BLOCK_BYTES)
        assert tuple(zlib.crc32(raw[suffix][start : start + BLOCK_BYTES]) for start in blocks) == expected


def documents_of(shard: dict[str, Any], raw: dict[str, bytes]) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield ids and unit starts of every document of one shard, from its manifest entry and its files' contents."""
    magic, version, code, count, num_bounds = HEADER.unpack_from(raw["idx"])
    assert (magic, version, count, num_bounds) == (b"MMIDIDX\0\0", 1, shard["documents"], shard["documents"] + 1)
    assert len(raw["idx"]) == 34 + 12 * count + 8 * num_bounds
    lengths = struct.unpack_from(f"<{count}i", raw["idx"], 34)
    first_bytes = struct.unpack_from(f"<{count}q", raw["idx"], 34 + 4 * count)
    assert struct.unpack_from(f"<{num_bounds}q", raw["idx"], 34 + 12 * count) == tuple(range(num_bounds))
    item = struct.calcsize("<" + ID_FORMATS[code])
    assert sum(lengths) == shard["tokens"]
    assert sum(bin(byte).count("1") for byte in raw["words"]) == shard["units"]
    for length, first_byte in zip(lengths, first_bytes, strict=True):
        tokens = list(struct.unpack_from(f"<{length}{ID_FORMATS[code]}", raw["bin"], first_byte))
        first = first_byte // item
        bits = [raw["words"][i // 8] >> (i % 8) & 1 == 1 for i in range(first, first + length)]
        yield tokens, bits
