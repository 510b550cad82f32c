"""Files that are either whole or absent: write aside, fsync, rename. Hashes for manifests.

What goes wrong names the file and the operation, which Python does not say of a write or an fsync.
"""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cmbert.errors import ConfigError, describe, may_pass

HASH_BLOCK_BYTES = 1 << 20
RUST_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # how safetensors and tokenizers say that the system failed them
NAME_BYTES = 255  # of a file or folder, on every file system of Linux
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = (1, 3, 8, 18)  # ours: half a minute, in which a file server or Lustre's client is back; then a new life

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


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    A link stays, and the file that it leads to is written. A device or a pipe is written to and never replaced.
    """
    path = real(path) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        with doing("open", path):
            descriptor = os.open(path, os.O_WRONLY)
        try:
            write_all(descriptor, data, path)
        finally:
            os.close(descriptor)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with doing("open", path):
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data, path)
            with doing("fsync", path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        rename(aside, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            aside.unlink(missing_ok=True)
        raise


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


def real(path: Path) -> Path:
    """Return where a path leads. A link to itself raises nothing here, unlike in Path.resolve: opening it does."""
    return Path(os.path.realpath(path))


def fault_of_name(name: str) -> str:
    """Return what keeps torch, or the system, from opening a file of this name, and the remedy; "" if nothing does."""
    if "\0" in name:
        return f"{name!r} has a NUL character in it; take it out"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"{name!r} is not UTF-8, and PyTorch opens no such file; rename it"
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    return f"has a name of {longest} bytes in it, and files have {NAME_BYTES} at most; shorten it" * (
        longest > NAME_BYTES
    )


def in_utf8(text: str) -> bytes:
    """Return a text's bytes; those of a file name that is not UTF-8 as \\udcff, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, in_utf8(text))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, Chinese text readable, whole or not at all."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, Chinese text readable; a number that is not finite, which JSON has not, becomes null."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a JSON value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class PatientFile:
    """A file to append to that outlives a full disk: what finds no room, itself perhaps, waits until there is some."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, b""
        self.descriptor: int | None = None
        self.flush()

    def write(self, data: bytes) -> int:
        """Append `data` after what waits. Raises OSError for what is not a lack of room."""
        self.waiting += data
        try:
            if self.descriptor is None:
                with doing("open", self.path):
                    self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            while self.waiting:
                with doing("write", self.path):
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
        if self.waiting or self.descriptor is None:
            with doing("write", self.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        with doing("fsync", self.path):
            os.fsync(self.descriptor)

    def close(self) -> None:
        """Put everything on disk. Raises OSError when there is still no room."""
        try:
            self.sync()
        finally:
            if self.descriptor is not None:
                os.close(self.descriptor)


def aside_path(final: Path) -> Path:
    """Return where this process builds what is to appear as `final`; what killed ones of this host left is removed."""
    of_host = f".{final.name}.{socket.gethostname()}."
    for left in final.parent.glob(f"{glob.escape(of_host)}*.partial"):
        pid = left.name.removeprefix(of_host).removesuffix(".partial")
        if pid.isdigit() and not _lives(int(pid)):  # else it is of another host, whose name begins like this one's
            remove(left)
    return final.with_name(f"{of_host}{os.getpid()}.partial")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def asides(final: Path) -> list[Path]:
    """Return where any process of any host builds what is to appear as `final`."""
    return sorted(final.parent.glob(f"{glob.escape(f'.{final.name}.')}*.partial"))


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def building(final: Path) -> Iterator[Path]:
    """Give an empty directory to build `final` in; publish it by one rename, or remove it when anything fails.

    Raises ConfigError when another process has made `final` meanwhile.
    """
    aside = make_empty(aside_path(final))
    try:
        yield aside
        _let_in(aside)
        try:
            publish_directory(aside, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise ConfigError(f"{final}: another process has made it meanwhile; this one's work is dropped") from error
    except Exception as error:
        if isinstance(error, OSError) or not (found := RUST_ERROR.search(str(error))):
            raise
        raise OSError(int(found[1]), f"{os.strerror(int(found[1]))} (write)", str(final)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # gone already when it was published


def _let_in(folder: Path) -> None:
    """Let the umask say who may read what is in a folder of ours; safetensors makes files for their owner alone."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def make_empty(folder: Path) -> Path:
    """Make a folder, and remove what was there. Returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    with doing("create", folder):
        folder.mkdir(parents=True)
    return folder


def publish_directory(aside: Path, final: Path) -> None:
    """Make `aside` appear as `final` in one rename, its files on disk first. Raises OSError if `final` is in use."""
    flush_directory(aside)
    with doing("rename", final):
        os.rename(aside, final)
    fsync_path(final.parent)


def flush_directory(folder: Path) -> None:
    """Put a folder's files on disk."""
    for path in sorted(folder.rglob("*")):
        fsync_path(path)
    fsync_path(folder)


def keep_beginning(path: Path, num_bytes: int) -> None:
    """Replace a file by its first bytes: whoever has the old one open writes into nothing from here on."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with doing("open", path):
        whole, kept = open(path, "rb"), open(aside, "wb")
    with doing("write", path), whole, kept:
        left = num_bytes
        while left:
            with doing("read", path):
                block = whole.read(min(left, HASH_BLOCK_BYTES))
            if not block:
                break
            kept.write(block)
            left -= len(block)
        kept.flush()
        with doing("fsync", path):
            os.fsync(kept.fileno())
    rename(aside, path)


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
