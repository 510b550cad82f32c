"""Stop requests: a scheduler's or keyboard's signal, a time limit, a launcher that is gone. The trainer ends its step,
saves and leaves.

Imports nothing that takes time: a signal that comes before `listen` kills the process.
"""

import os
import signal
import time

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not finished, run the same command again
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A flag that a signal, the clock or the launcher's end sets. It is this rank's own: the loop asks all ranks."""

    def __init__(self, stop_after_seconds: float | None = None):
        self.received: int | None = None
        self.launcher: int | None = None
        self.parent = os.getppid()
        self.limit(stop_after_seconds)

    def listen(self) -> None:
        """Install the handlers; a second signal changes nothing. What starts ranks may have blocked the signals."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def limit(self, seconds: float | None) -> None:
        """Ask for a stop so many seconds from now; None: never."""
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def follow_launcher(self) -> None:
        """Ask for a stop, too, once the process that started this one is gone: nobody else would end the ranks then."""
        self.launcher = self.parent

    def _receive(self, number: int, frame: object) -> None:
        self.received = number

    def pending(self) -> bool:
        """Return whether this rank has been asked to stop."""
        return (
            self.received is not None
            or (self.deadline is not None and time.monotonic() >= self.deadline)
            or (self.launcher is not None and os.getppid() != self.launcher)
        )

    def reason(self) -> str:
        """Say what asked for the stop."""
        if self.received is not None:
            return signal.Signals(self.received).name
        if self.launcher is not None and os.getppid() != self.launcher:
            return "the launcher has ended"
        return "time limit or another rank's signal"
