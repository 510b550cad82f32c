"""How a rank ends: with all that it has running, at once, with one last line and the right exit code. Torch-free.

Several threads may want to end the process: the main thread on an error, the watchdog at its alarm, the listener when
another rank has failed. The first that calls `claim` does, and speaks; the others wait for it.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import NoReturn

from cmbert.cluster.preemption import EXIT_STOPPED, STOP_SIGNALS
from cmbert.errors import run_command

EXIT_FAILED = 1
OTHER_RANK = "another rank has ended"  # what a rank says whose own fault it is not
LAST_WORDS_SECONDS = 5.0  # for a last line and what is in buffers; stdout may be a pipe that nobody reads
CLAIMED_SECONDS = 60.0  # more than the watchdog takes to end a process, with a store that does not answer

_claim = threading.Lock()


class PeerError(Exception):
    """Another rank has ended, and this one cannot go on without it; the text says what is known."""


def end(program: str, command: Callable[[], int | None]) -> NoReturn:
    """Run a rank's command and end the process: nothing that it has running is waited for.

    An error that is nobody's mistake keeps its traceback and gets a last line. program: who speaks in that line.
    """

    def claimed() -> int | None:
        try:
            return command()
        finally:
            if not claim():
                time.sleep(CLAIMED_SECONDS)  # until the thread that was first has ended the process

    try:
        code = run_command(program, claimed)
    except PeerError as error:
        code = _say(f"{program}: error: {OTHER_RANK}: {error}")
    except BaseException as error:  # noqa: BLE001 (whatever it is, the process ends of it)
        traceback.print_exception(error)
        code = _say(f"{program}: error: {line_with_kind(error)}")
    leave(code)


def claim() -> bool:
    """Return whether the caller is the one to end the process: only the first is, and it must."""
    return _claim.acquire(blocking=False)


def leave(code: int) -> NoReturn:
    """End this process with `code`: its loader processes are killed, nothing is waited for, no finaliser runs.

    During Python's finalisation multiprocessing joins its children, and one rank of a finished ZeRO-3 run aborted
    ("terminate called without an active exception") in 1 of 25 runs on two loaded cores. That is what a C++ thread does
    which asks for the GIL of a dying interpreter; the process group's threads are the likely ones. Left so: 0 of 39.
    """
    last = threading.Timer(LAST_WORDS_SECONDS, os._exit, (code,))
    last.daemon = True
    last.start()
    for child in multiprocessing.active_children():
        child.kill()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # busy importing, it notices late
    if server is not None:
        os.kill(server, signal.SIGKILL)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # its reader has left, or its disk is full: the exit code still tells
            continue
    os._exit(code)


def leave_when_asked(program: str) -> None:
    """Have a signal to stop end this process at once with EXIT_STOPPED, wherever its main thread waits.

    Called before there are other threads. What this process starts is deaf to these signals.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_leave_when_asked, args=(program,), daemon=True).start()


def _leave_when_asked(program: str) -> None:
    number = signal.sigwait(STOP_SIGNALS)
    if claim():
        _say(f"{program}: asked to stop ({signal.Signals(number).name})")
        leave(EXIT_STOPPED)


def line_with_kind(error: BaseException) -> str:
    """Return an error in one line, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _say(line: str) -> int:
    print(line, file=sys.stderr)
    return EXIT_FAILED
