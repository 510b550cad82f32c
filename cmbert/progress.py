"""What commands say while they run: log lines; progress, live on a terminal, a line now and then elsewhere."""

import logging
import sys
import time

from cmbert.errors import forget_stdout

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 15.0


class StdoutHandler(logging.StreamHandler):
    """Log lines on stdout. When their reader has left (`| head`), the work goes on without them."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Called by logging in the `except` of a failed write."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            forget_stdout()
        else:
            super().handleError(record)


def log_to_stdout(package: str, form: str) -> None:
    """Show a package's own messages as `form` says; the libraries' stay at their defaults (DeepSpeed's are probes)."""
    handler = StdoutHandler()
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
        self.live = sys.stderr.isatty()
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
        print(f"\r\x1b[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the live line."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> tuple[str, str]:
    """Return seconds as people say them, number and unit: 75.0 s, 12.3 min, 3.5 h."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.1f}", unit
