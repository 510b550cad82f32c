"""Who does the tasks: this process, a pool of local processes, or MPI ranks. Results come as they are done."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, NamedTuple, cast

from cmbert.errors import ConfigError
from cmbert.files.operations import doing

IN_FLIGHT_PER_WORKER = 2  # one at work, one waiting


class Share(NamedTuple):
    """The tasks of one job of an array: job `number`, from 0, of `num_jobs`."""

    number: int
    num_jobs: int

    @classmethod
    def of(cls, number: int | None, num_jobs: int | None) -> "Share | None":
        """Return what --task-index and --num-tasks say, None without them. Raises ConfigError."""
        if number is None and num_jobs is None:
            return None
        if number is None or num_jobs is None:
            raise ConfigError("--num-tasks and --task-index: give both (a job of an array) or none")
        if not 0 <= number < num_jobs:
            raise ConfigError(f"--task-index {number}: --num-tasks {num_jobs} allows 0 to {num_jobs - 1}")
        return cls(number, num_jobs)


class Workers:
    """Something that does tasks; `executor` None is this process itself."""

    def __init__(self, executor: Executor | None = None, count: int = 1):
        self.executor, self.count = executor, count

    def map_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(item)` for every item as it is done, a bounded number in flight.

        `function` and the items are pickled. What a worker raises is raised here. Raises ConfigError when one dies.
        """
        if self.executor is None:
            yield from map(function, items)
            return
        pending: set[Future] = set()
        try:
            for item in items:
                pending.add(self.executor.submit(function, item))
                if len(pending) >= self.count * IN_FLIGHT_PER_WORKER:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise ConfigError("a worker process was killed (out of memory?); run again with fewer --workers") from error


@contextmanager
def local_workers(count: int) -> Iterator[Workers]:
    """Give `count` processes, or this one when `count` is 1. When the block is left by an error they die at once."""
    if count == 1:
        yield Workers()
        return
    context = multiprocessing.get_context("spawn")
    leave, stay = context.Pipe(duplex=False)
    with doing("locks of the workers", "/dev/shm"):
        pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(leave,))
    try:
        _launch(pool)
        yield Workers(pool, count)
        pool.shutdown()
    finally:
        stay.close()  # what is still at work now has no use
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


def _start_worker(leave: connection.Connection) -> None:
    threading.Thread(target=_leave_with_parent, args=(leave,), daemon=True).start()


def _leave_with_parent(leave: connection.Connection) -> None:
    """End this process when the parent says so, or when it is gone: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel, leave])
    os._exit(1)


@contextmanager
def mpi_workers() -> Iterator[Workers | None]:
    """Give, on rank 0, the other ranks as workers; on those, None once there is nothing left to do for them.

    Source: mpi4py.futures.MPICommExecutor. Raises ConfigError without mpi4py, without an MPI library or on one rank.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"--mpi: {error}; pip install 'cmbert[mpi]', or load your site's MPI module") from error
    size = MPI.COMM_WORLD.Get_size()
    if size == 1:
        raise ConfigError("--mpi: only one rank; start it by mpiexec or srun with one more rank than workers")
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else Workers(cast(Executor, executor), size - 1)  # its stub says otherwise
