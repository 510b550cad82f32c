"""Files that outlive a full disk: /dev/full has no room, whoever asks."""

import errno
import os
import pickle
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.errors import ConfigError
from cmbert.files.folders import aside_path, asides, building
from cmbert.files.operations import RETRY_SECONDS, doing, patiently
from cmbert.files.patient import PatientFile
from cmbert.files.whole import keep_beginning, write_bytes


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


@pytest.mark.parametrize("name", ["model", "a[1]*"])
def test_two_processes_build_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    final = tmp_path / name
    at_once: list[Path] = []

    def build(text: str, meanwhile: Callable[[], object]) -> None:
        with building(final) as aside:
            (aside / "file").write_text(text, encoding="utf-8")
            meanwhile()

    def another() -> None:
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", os.getppid)
            build("second", meanwhile=lambda: at_once.extend(asides(final)))

    with pytest.raises(ConfigError, match="another process has made it meanwhile"):
        build("first", meanwhile=another)
    assert len(at_once) == 2
    assert (final / "file").read_text(encoding="utf-8") == "second"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_killed_processes_of_this_host_left_is_removed(tmp_path: Path) -> None:
    final = tmp_path / "model"
    process = subprocess.Popen(["true"])
    process.wait()
    host = socket.gethostname()
    writers = (f"{host}.{os.getpid()}", f"{host}.{process.pid}", f"n7.{process.pid}", f"{host}.org.{process.pid}")
    mine, dead, *elsewhere = (tmp_path / f".model.{writer}.partial" for writer in writers)
    for left in (mine, dead, *elsewhere):
        left.mkdir()
        (left / "torn").touch()
    with building(final) as aside:
        assert aside == mine
        assert not list(aside.iterdir())
        assert asides(final) == sorted([mine, *elsewhere])
    dead.touch()  # as a file
    assert aside_path(final) == mine
    assert asides(final) == sorted(elsewhere)
