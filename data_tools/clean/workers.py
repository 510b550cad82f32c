"""The processes of `clean`: datatrove's local executor without its running commentary, watched by what is completed.

Each task still has its log file. The workers are deaf to signals that are the parent's.
"""

import functools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger
from multiprocess.forkserver import ensure_running, set_forkserver_preload

from cmbert.progress import Progress

POLL_SECONDS = 0.3
STEPS = (
    "data_tools.clean.workers",
    "data_tools.clean.heldout",
    "data_tools.clean.similar",
    "datatrove.pipeline.writers.jsonl",
)


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
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        set_forkserver_preload(list(STEPS))
        ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


class QuietExecutor(LocalPipelineExecutor):
    """Says nothing on the terminal, in the workers neither; `clean` reports for it."""

    def run(self) -> PipelineStats | None:
        """Run all tasks that are not complete."""
        logger.disable("datatrove")
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")  # in each worker
        _end_with_parent()
        for step in self.pipeline:
            vars(step)["stat_update"] = _uncounted
        return super()._run_for_rank(rank, local_rank, node_rank)


@functools.cache  # once in a process
def _end_with_parent() -> None:
    """Let this worker end when its parent is killed: else it would mark tasks of the next call done."""
    if parent := multiprocess.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _uncounted(*labels: str, value: int = 1, unit: str | None = None) -> None:
    """Do nothing: datatrove's statistics of every document and step, which nobody reads, took a tenth of the time."""
