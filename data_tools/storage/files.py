"""A file of input, wherever it lies: on a disk (Path) or in a store (RemoteFile); nobody else tells them apart.

A RemoteFile holds no connection: it is pickled to other processes and machines, each of which makes its own.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cmbert.errors import CmbertError, InputError
from data_tools.storage.connection import MAGIC, STORES, Connection

BUFFER_BYTES = 1 << 17  # of what lines are read from
FIRST_BYTES = 1 << 18  # of a request at a new place; each that follows on asks for twice as much
MOST_BYTES = 1 << 23  # of a request; ours: some hundred milliseconds at a gigabit


@dataclass(frozen=True, order=True)
class RemoteFile:
    """An object of a store as it was when it was listed."""

    url: str
    size: int
    """Bytes."""
    version: str
    """Its ETag, hash or time, whichever the store has: another one as soon as it is written again."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    def check_unchanged(self) -> None:
        """Raise InputError when another object is there now, or none."""
        now = remote_file(self.url, Connection(self.url).info(self.url))
        if (now.size, now.version) != (self.size, self.version):
            changed = f"{self.size:,} bytes, version {self.version}; now {now.size:,}, {now.version}"
            raise InputError(f"{self}: changed since this command listed it ({changed}); run the same command again")


InputFile = Path | RemoteFile


def is_remote(name: str) -> bool:
    """Return whether what a user has named lies in a store."""
    return name.startswith(tuple(f"{scheme}://" for scheme in STORES))


def size_of(file: InputFile) -> int:
    """Return a file's bytes; of a remote one as it was listed."""
    return file.stat().st_size if isinstance(file, Path) else file.size


@contextmanager
def open_input(file: InputFile, until: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for reading; what is given seeks and tells.

    until: byte behind which hardly more is fetched than is asked for. Of a remote file only blocks are in memory and
    nothing is on disk. Raises what `Connection` does, and InputError at the end for one that was changed meanwhile.
    """
    if isinstance(file, Path):
        with open(file, "rb") as raw:
            yield raw
        return
    try:
        with io.BufferedReader(_Blocks(file, until), BUFFER_BYTES) as stream:
            yield stream
    except CmbertError:  # a text of two versions may be no JSON
        file.check_unchanged()
        raise
    file.check_unchanged()


class _Blocks(io.RawIOBase):
    """The bytes of a remote file, by ranged reads that grow as long as one follows on the other."""

    def __init__(self, file: RemoteFile, until: int | None):
        self.file, self.until = file, file.size if until is None else until
        self.connection = Connection(file.url)
        self.position = self.start = 0
        self.block, self.ahead = memoryview(b""), 0

    def readable(self) -> bool:
        """Return True: io.BufferedReader asks."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; nothing is read."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = max(origin + offset, 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what there is of a block; 0 at the end."""
        if self.position >= self.file.size:
            return 0
        if not 0 <= self.position - self.start < len(self.block):
            self._fetch(len(buffer))
        part = self.block[self.position - self.start :][: len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def _fetch(self, wanted: int) -> None:
        """Read the block at `position`: what is wanted, and more if the last one was followed to its end."""
        follows_on = self.ahead and self.position == self.start + len(self.block)
        self.ahead = min(2 * self.ahead, MOST_BYTES) if follows_on else FIRST_BYTES
        ahead = min(self.ahead, max(self.until - self.position, FIRST_BYTES))
        end = min(self.position + max(ahead, min(wanted, MOST_BYTES)), self.file.size)
        self.start, self.block = self.position, memoryview(b"")  # its memory first
        self.block = memoryview(self.connection.read(self.file.url, self.start, end))


def remote_file(url: str, info: dict[str, Any]) -> RemoteFile:
    """Return the file of which a store says `info`."""
    marks = (info.get(key) for key in ("ETag", "blob_id", "LastModified", "last_modified", "mtime"))
    return RemoteFile(url, int(info["size"] or 0), str(next(filter(None, marks), "")).strip('"'))


def remote_files(url: str) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Return the files that a URL or a glob names itself, and those that lie below folders it names, each sorted.

    Hidden ones below a folder, or that a glob finds, are left out. Raises what `Connection` does.
    """
    connection = Connection(url)
    matches = connection.matches(url.rstrip("/"))
    head = url[: min((url.find(mark) for mark in MAGIC if mark in url), default=len(url))].rpartition("/")[0]
    named, below = list[RemoteFile](), list[RemoteFile]()
    for match, info in matches.items():
        if match != url.rstrip("/") and _is_hidden(match, head):
            continue
        if info["type"] == "file":
            named.append(remote_file(match, info))
            continue
        found = connection.files_below(match)
        below += [remote_file(file, by) for file, by in found.items() if not _is_hidden(file, match)]
    return sorted(named), sorted(below)


def _is_hidden(url: str, folder: str) -> bool:
    return "/." in url.removeprefix(folder)
