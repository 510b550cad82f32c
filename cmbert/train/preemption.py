"""Stop requests: a scheduler's or keyboard's signal, or a time limit. The trainer ends its step, saves and leaves."""

import logging
import signal
import time

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not finished, run the same command again
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A flag that a signal or the clock sets. It is this rank's own: the loop asks all ranks before it acts."""

    def __init__(self, stop_after_seconds: float | None):
        self.deadline = None if stop_after_seconds is None else time.monotonic() + stop_after_seconds
        self.received: int | None = None

    def listen(self) -> None:
        """Install the handlers; a second signal changes nothing."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number

    def pending(self) -> bool:
        """Return whether this rank has been asked to stop."""
        return self.received is not None or (self.deadline is not None and time.monotonic() >= self.deadline)

    def reason(self) -> str:
        """Say what asked for the stop."""
        return (
            signal.Signals(self.received).name if self.received is not None else "time limit or another rank's signal"
        )
