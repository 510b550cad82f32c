"""What commands say while they run: log lines; progress, live on a terminal, a line now and then elsewhere."""

import logging
import os
import sys
import time
from typing import TextIO

from cmbert.errors import describe
from cmbert.standard_streams import take_loss

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 15.0


class StdoutHandler(logging.StreamHandler):
    """Log lines on stdout. What it does not take (a full disk, `| head`) is lost, and the work goes on without them."""

    def __init__(self, package: str):
        super().__init__()
        self.package, self.has_told = package, False

    @property
    def stream(self) -> TextIO:
        """Standard output as it is now."""
        return sys.stdout

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """What logging sets is not asked for."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; say it once if that fails."""
        super().emit(record)
        lost = take_loss()
        if lost and not isinstance(lost, BrokenPipeError) and not self.has_told:
            self.has_told = True
            said = f"standard output: {describe(lost)}; log lines are lost, the work goes on"
            print(f"{self.package}: {said}", file=sys.stderr)


def log_to_stdout(package: str, form: str) -> None:
    """Show a package's own messages as `form` says; the libraries' stay at their defaults (DeepSpeed's are probes)."""
    handler = StdoutHandler(package)
    handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
    logger = logging.getLogger(package)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Progress:
    """Report `done` of `total` with rate and time left. Prints nothing for work that ends within the first interval.

    done: what an earlier call had done; it does not count towards the rate.
    """

    def __init__(self, label: str, total: float, unit: str, done: float = 0.0):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.done_before = done
        self.live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.interval = TERMINAL_INTERVAL_SECONDS if self.live else LOG_INTERVAL_SECONDS
        self.started = self.shown = time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        """Count `amount` more units of work as done; `note` is shown beside them."""
        self.done += amount
        now = time.monotonic()
        if now - self.shown < self.interval:
            return
        self.shown = now
        rate = (self.done - self.done_before) / (now - self.started)
        left = " ".join(duration((self.total - self.done) / rate)) if rate > 0 else "?"
        share = 100 * self.done / self.total if self.total else 100.0
        text = f"{self.label}: {share:3.0f} %  {rate:,.1f} {self.unit}/s  {left} left" + (f"  {note}" if note else "")
        if self.live:  # what a narrow terminal breaks into two lines is not cleared
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            text = f"\r\x1b[K{text[: width - 1] if width > 1 else text}"
        print(text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the live line."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> tuple[str, str]:
    """Return seconds as people say them, number and unit: 75.0 s, 12.3 min, 3.5 h."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.1f}", unit
