"""Folders that are either whole or absent: built aside, published by one rename."""

import contextlib
import errno
import glob
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from cmbert.errors import ConfigError
from cmbert.files.operations import doing, fsync_path

RUST_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # how safetensors and tokenizers say that the system failed them


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
