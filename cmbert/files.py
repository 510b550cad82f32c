"""Files that are either whole or absent: write aside, fsync, rename. Hashes for manifests."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def fsync_path(path: Path) -> None:
    """Force a file's or directory's contents to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, Chinese text readable, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


class PatientFile:
    """A file to append to that outlives a full disk: what finds no room waits in memory until there is some."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, b""
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, data: bytes) -> int:
        """Append `data` after what waits. Raises OSError for what is not a lack of room."""
        self.waiting += data
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.descriptor, self.waiting) :]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        return len(data)

    def flush(self) -> None:
        """Try again to write what waits."""
        self.write(b"")

    def sync(self) -> None:
        """Put everything on disk. Raises OSError when there is still no room."""
        self.flush()
        if self.waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Put everything on disk. Raises OSError when there is still no room."""
        try:
            self.sync()
        finally:
            os.close(self.descriptor)


def aside_path(final: Path) -> Path:
    """Return where a directory is built before it appears as `final`."""
    return final.with_name(f".{final.name}.partial")


def aside_directory(final: Path) -> Path:
    """Return an empty directory beside `final` to build it in; what a killed run left there is removed."""
    aside = aside_path(final)
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


def new_digest() -> hashlib.blake2b:
    """Return the BLAKE2b-256 of nothing, to be updated with a file's blocks."""
    return hashlib.blake2b(digest_size=32)


def hash_file(path: Path) -> str:
    """Return the BLAKE2b-256 hash of a file, in hex."""
    digest = new_digest()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
