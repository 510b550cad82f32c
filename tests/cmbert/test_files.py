"""Files that outlive a full disk: /dev/full has no room, whoever asks."""

import os
from pathlib import Path

import pytest

from cmbert.files import PatientFile


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


def test_it_appends(tmp_path: Path) -> None:
    for _ in range(2):
        file = PatientFile(tmp_path / "log")
        assert file.write(b"ab") == 2
        file.close()
    assert (tmp_path / "log").read_bytes() == b"abab"
