"""Files that are either whole or absent: write aside, fsync, rename. Hashes for manifests."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20


def fsync_path(path: Path) -> None:
    """Force a file's or directory's contents to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, Chinese text readable, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def aside_directory(final: Path) -> Path:
    """Return an empty directory beside `final` to build it in; what a killed run left there is removed."""
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def publish_directory(aside: Path, final: Path) -> None:
    """Make `aside` appear as `final` in one rename, its files on disk first. Raises OSError if `final` is in use."""
    for path in sorted(aside.rglob("*")):
        fsync_path(path)
    fsync_path(aside)
    os.rename(aside, final)
    fsync_path(final.parent)


def hash_file(path: Path) -> str:
    """Return the BLAKE2b-256 hash of a file, in hex."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
