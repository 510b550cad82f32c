"""What asks a training to stop; a preflight that is asked ends at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmbert.cluster.preemption import EXIT_STOPPED, StopRequest
from tests.processes import catches

STUCK = """import ctypes, sys
from cmbert.cluster.ending import leave_when_asked
leave_when_asked("cmbert (rank 3)")
print("listening", flush=True)
ctypes.CDLL(None).sleep(600)  # not in Python: a handler of Python's would have to wait
"""


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(60)
    assert not stop.pending()
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert stop.pending()
    assert stop.reason().startswith("time limit")
    stop.limit(None)
    assert not stop.pending()


def test_a_launcher_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, launched = StopRequest(), StopRequest()
    launched.follow_launcher()
    assert not launched.pending()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not alone.pending()  # `nohup cmbert train &`, and the shell was closed
    assert launched.pending()
    assert launched.reason() == "the launcher has ended"


def test_a_training_listens_before_it_imports() -> None:
    """A signal as soon as there is a handler, which is before the program has read its arguments."""
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "cmbert", "train", "nowhere.toml"], stderr=subprocess.PIPE, text=True, cwd=root
    )
    while not catches(process.pid, signal.SIGUSR1):
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors  # it lived to say what it has to
    assert "nowhere.toml" in errors


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_preflight_that_is_asked_ends_at_once(number: int) -> None:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == EXIT_STOPPED
    assert errors == f"cmbert (rank 3): asked to stop ({signal.Signals(number).name})\n"
