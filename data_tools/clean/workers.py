"""The processes of `clean`: deaf to signals that are the parent's, watched by what they have completed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmbert.progress import Progress

POLL_SECONDS = 0.3
STEPS = ("data_tools.clean.executor", "data_tools.clean.heldout", "datatrove.pipeline.writers.jsonl")


@contextmanager
def watching(name: str, completions: Path, total: int) -> Iterator[None]:
    """Show progress by the tasks' completion markers."""
    there = len(list(completions.iterdir())) if completions.is_dir() else 0
    progress, over = Progress(f"clean: {name}", total, "tasks", done=there), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            now = len(os.listdir(completions)) if completions.is_dir() else 0
            progress.advance(now - progress.done)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        progress.close()


def start_server(workers: int) -> None:
    """Start the server that forks the workers, if there are several: with the steps imported, so that no worker of any
    pass has to, and deaf to Ctrl-C, which the parent answers by ending them. It imports while this process goes on.
    """
    if workers == 1:
        return
    from multiprocess.forkserver import ensure_running, set_forkserver_preload

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        set_forkserver_preload(list(STEPS))
        ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
