"""Operations on files that name the file and what was being done, and are tried again where that may help.

Python does not say of a write or an fsync which file it was.
"""

import contextlib
import errno
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from cmbert.errors import describe, may_pass

HASH_BLOCK_BYTES = 1 << 20
RETRY_SECONDS = (1, 3, 8, 18)  # half a minute, in which a file server or Lustre's client is back; then a new life

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@contextlib.contextmanager
def doing(operation: str, path: Path | str) -> Iterator[None]:
    """Let an OSError of what is done inside name the file and the operation, as "FILE: Input/output error (fsync)".

    operation: open, stat, list, read, write, fsync, rename, link or remove. An error that says so already stays.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or getattr(error, "operation", None):
            raise
        below = str(error.filename or "").startswith(f"{path}/")  # a folder was named, and this is the file in it
        name = str(error.filename if below else path)
        named = OSError(error.errno, f"{os.strerror(error.errno)} ({operation})", name)
        named.operation = operation  # type: ignore[attr-defined]
        raise named from error


def patiently(read: Callable[[], Result]) -> Result:
    """Return what `read` returns; where its error may pass, try again after each of RETRY_SECONDS and say so.

    Raises the last OSError. A page of a memory map that cannot be read is no exception but a signal (SIGBUS), which
    ends the process: that can only be retried by a new life.
    """
    for seconds in RETRY_SECONDS:
        try:
            return read()
        except OSError as error:
            if not may_pass(error):
                raise
            logger.warning("%s; trying again in %d s", describe(error), seconds)
        time.sleep(seconds)
    return read()


def fsync_path(path: Path) -> None:
    """Force a file's or directory's contents to disk."""
    with doing("open", path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        with doing("fsync", path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Let `new` be what `old` was, in one step, also after a power failure."""
    with doing("rename", new):
        os.replace(old, new)
    fsync_path(new.parent)


def write_all(descriptor: int, data: bytes, path: Path) -> None:
    """Write all of `data` to an open file. path: for the words of an error."""
    rest = memoryview(data)
    with doing("write", path):
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def read_bytes(path: Path) -> bytes:
    """Return the contents of a file."""
    with doing("open", path):
        file = open(path, "rb")
    with file, doing("read", path):
        return file.read()


def read_input(path: Path) -> bytes | None:
    """Return the contents of a file that somebody made, or None if there is none; tried again where that may help."""
    return None if patiently(partial(file_size, path)) is None else patiently(partial(read_bytes, path))


def file_size(path: Path) -> int | None:
    """Return a file's bytes, or None if there is none. Unlike Path.is_file, does not take every error for that."""
    try:
        with doing("stat", path):
            found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a NUL, which no name holds
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def new_digest() -> hashlib.blake2b:
    """Return the BLAKE2b-256 of nothing, to be updated with a file's blocks."""
    return hashlib.blake2b(digest_size=32)


def hash_file(path: Path) -> str:
    """Return the BLAKE2b-256 hash of a file, in hex."""
    digest = new_digest()
    with doing("open", path):
        file = open(path, "rb")
    with file, doing("read", path):
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
