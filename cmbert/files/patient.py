"""A file to append to that outlives a full disk."""

import errno
import os
from pathlib import Path

from cmbert.files.operations import doing

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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
