"""Standard input, output and error of a command, whatever they are: closed, a full disk, a pipe that nobody reads.

Work never fails of what it says: what a stream does not take is lost, and remembered until the command ends.
"""

import io
import os
import select
import sys
from typing import Any

STDIN, STDOUT, STDERR = range(3)


def use_utf8() -> None:
    """Let file names be UTF-8 in every locale: start this Python again, in its UTF-8 mode, if they are not.

    Recipes and manifests name files in UTF-8, and PyTorch opens no others; Python 3.15 is so by itself (PEP 686). What
    is printed keeps its encoding. Signals must not be listened to yet.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = getattr(sys.stdout, "encoding", "utf-8")
    changes = {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING") or shown}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changes})


class LossyStream(io.FileIO):
    """A descriptor to write to that takes everything; `lost` is the error of what went nowhere."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Return how much was written, or lost."""
        try:
            while (written := super().write(data)) is None:  # a terminal or pipe that its other users made non-blocking
                _wait_for_room(self.fileno())
        except OSError as error:
            self.lost = error
            return len(data)
        return written


def _wait_for_room(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def guard_standard_streams() -> None:
    """Let printing never raise, of what a stream does not take or of characters that it has not (shown as \\u4e2d).

    A standard stream that is closed becomes /dev/null, or the next file to be opened would be taken for it. What
    somebody has put in a stream's place stays. Once is enough.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:  # it is the lowest that is free, so it is the one that `open` gives
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _opened(STDOUT, sys.stdout, in_lines=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _opened(STDERR, sys.stderr, in_lines=True)


def _opened(descriptor: int, old: Any, in_lines: bool) -> io.TextIOWrapper:
    if old is not None:
        old.flush()
        in_lines |= old.line_buffering or old.write_through  # python -u
    buffer = io.BufferedWriter(LossyStream(descriptor, "w", closefd=False))
    encoding = old.encoding if old is not None else "utf-8"
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=in_lines)


def take_loss() -> OSError | None:
    """Return the last error of standard output since this was asked, None if it took all."""
    sys.stdout.flush()
    stream = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(stream, LossyStream):
        return None
    lost, stream.lost = stream.lost, None
    return lost
