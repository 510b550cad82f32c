"""Files that outlive a full disk: /dev/full has no room, whoever asks."""

import errno
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.files import RETRY_SECONDS, PatientFile, doing, keep_beginning, patiently, write_bytes


def test_what_finds_no_room_waits_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = PatientFile(path)
    file.write(b"one\n")
    room, full = os.dup(file.descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.descriptor)
    file.write(b"two\n")
    file.write(b"three\n")
    with pytest.raises(OSError, match="No space left on device") as raised:
        file.sync()
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"one\n"
    os.dup2(room, file.descriptor)
    file.write(b"four\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    os.close(room)
    os.close(full)


def test_other_errors_are_raised(tmp_path: Path) -> None:
    file = PatientFile(tmp_path / "log")
    os.close(file.descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(b"x")


def fail(number: int, times: int) -> Callable[[], str]:
    """Return what fails so many times, then returns a word."""
    left = iter(range(times))

    def read() -> str:
        if next(left, None) is not None:
            raise OSError(number, os.strerror(number), "/x")
        return "read"

    return read


def test_a_read_is_tried_again_where_that_may_help(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert patiently(fail(errno.ESTALE, len(RETRY_SECONDS))) == "read"
    assert waits == list(RETRY_SECONDS)
    assert caplog.messages[0] == "/x: Stale file handle; trying again in 1 s"
    assert len(caplog.messages) == len(RETRY_SECONDS)
    with pytest.raises(OSError, match="Stale file handle"):
        patiently(fail(errno.ESTALE, len(RETRY_SECONDS) + 1))
    waits.clear()
    with pytest.raises(PermissionError):
        patiently(fail(errno.EACCES, 1))
    assert waits == []


def test_an_error_names_the_file_and_the_innermost_operation() -> None:
    inner = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match=re.escape("(fsync): '/y'")), doing("write", Path("/x")), doing("fsync", "/y"):
        raise inner
    elsewhere = OSError(errno.ENOENT, "No such file or directory", "/elsewhere")
    with pytest.raises(FileNotFoundError, match=re.escape("(open): '/x'")) as raised, doing("open", Path("/x")):
        raise elsewhere
    assert pickle.loads(pickle.dumps(raised.value)).operation == "open"  # so it comes from other ranks


def test_the_old_file_stays_with_who_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    older = PatientFile(path)
    keep_beginning(path, 4)
    older.write(b"older\n")
    older.close()
    assert path.read_bytes() == b"one\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail_to_rename(old: Path, new: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(old))

    monkeypatch.setattr(os, "replace", fail_to_rename)
    with pytest.raises(OSError, match=re.escape(f"(rename): '{path}'")):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_appends(tmp_path: Path) -> None:
    for _ in range(2):
        file = PatientFile(tmp_path / "log")
        assert file.write(b"ab") == 2
        file.close()
    assert (tmp_path / "log").read_bytes() == b"abab"
