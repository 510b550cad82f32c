"""Progress of long commands: a live line on a terminal, one log line now and then elsewhere."""

import sys
import time

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 15.0


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
