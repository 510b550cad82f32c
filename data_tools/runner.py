"""A pool of worker processes whose results come back in the order of the work, a bounded number in flight."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from cmbert.errors import ConfigError

IN_FLIGHT_PER_WORKER = 3  # ours: one at work, one waiting, one to be fetched

_work: Callable[[Any], Any]  # of a worker process: set once by _start_worker


def ordered_map(
    make: Callable[..., Callable[[Any], Any]], arguments: tuple, items: Iterable[Any], num_workers: int
) -> Iterator[Any]:
    """Yield `make(*arguments)(item)` for every item, in order.

    Each of `num_workers` processes calls `make` once; with one worker everything happens here. An error in a worker is
    raised here. Raises ConfigError when a worker process dies.
    """
    if num_workers == 1:
        yield from map(make(*arguments), items)
        return
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(make, arguments)
    )
    pending: deque[Future] = deque()
    try:
        _launch(pool)
        for item in items:
            pending.append(pool.submit(_do, item))
            if len(pending) >= num_workers * IN_FLIGHT_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ConfigError("a worker process was killed (out of memory?); run again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _launch(pool: ProcessPoolExecutor) -> None:
    """Start the workers deaf to Ctrl-C, which reaches the whole process group: the parent answers it.

    They inherit the ignored signal, so they are deaf from their first instruction on. (A pool that spawns starts all of
    its processes at the first submit.)
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool.submit(os.getpid)
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker(make: Callable[..., Callable[[Any], Any]], arguments: tuple) -> None:
    global _work
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _work = make(*arguments)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])  # a killed parent cannot stop its workers
    os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
