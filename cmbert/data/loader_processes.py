"""Loader processes: each prepares every n-th step ahead of the trainer, and none outlives it.

A process hands its steps over a pipe: nothing is left in shared memory whoever is killed, and a small or full /dev/shm
stops nobody. Signals that are sent to all processes of a step are the trainer's alone.
"""

import atexit
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker
from typing import NamedTuple

import torch

from cmbert.data.batches import PackedBatch, StepData
from cmbert.data.reader import StepBatches
from cmbert.errors import TransientError

PREFETCH_STEPS = 2  # steps of each process that lie ready, beside the one that it has in hand
TRAINERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PARTING_SECONDS = 5.0  # for a killed process to be gone; what the kernel holds longer is not waited for
SERVER_GONE = 255  # multiprocessing's exit code of a process whose server was killed; it may well live and work
CAUSES = {  # of a process's death, by signal: what it most often means
    signal.SIGKILL: "most often the system does that when memory runs short: lower data.num_workers, or ask for more",
    signal.SIGBUS: "a shard in use could not be read: its file system failed, or the file was cut short",
}


def iterate_steps(batches: StepBatches, steps: range, num_workers: int, pin_memory: bool) -> Iterator[StepData]:
    """Yield this rank's part of each step in order, prepared ahead by `num_workers` processes (0 = in this one).

    Raises what the preparation of a step raises, in a process, too; TransientError when a process is killed.
    """
    if num_workers == 0:
        for step in steps:
            data = batches[step]
            yield data.pin() if pin_memory else data
        return
    loaders = LoaderProcesses(batches, steps, num_workers, pin_memory)
    try:
        for _ in steps:
            yield loaders.get()
    finally:
        loaders.close()


class _Failure(NamedTuple):
    """What a process sends instead of a step."""

    error: Exception
    stack: str


class LoaderProcesses:
    """The processes of one pass over `steps`, and a thread that takes what they send, in order."""

    def __init__(self, batches: StepBatches, steps: range, num_workers: int, pin_memory: bool):
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.pipes: list[connection.Connection] = []
        self.ready: queue.SimpleQueue[StepData | BaseException] = queue.SimpleQueue()
        self.slots = threading.Semaphore(PREFETCH_STEPS * num_workers)
        self.is_closing = False
        atexit.register(self.close)  # multiprocessing would wait for them, and they for us
        context = multiprocessing.get_context("forkserver")
        with _signals_are_the_trainers():
            for number in range(num_workers):
                pipe, sending = context.Pipe(duplex=False)
                process = context.Process(
                    target=_prepare, args=(sending, batches, steps[number::num_workers]), name=f"loader {number}"
                )
                process.start()
                sending.close()
                self.processes.append(process)
                self.pipes.append(pipe)
        device = torch.cuda.current_device() if pin_memory and torch.cuda.is_available() else None
        self.thread = threading.Thread(
            target=self._take, args=(len(steps), pin_memory, device), name="loader", daemon=True
        )
        self.thread.start()

    def get(self) -> StepData:
        """Return the next step's data, when it is there. Raises as `iterate_steps` does."""
        item = self.ready.get()
        self.slots.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        atexit.unregister(self.close)
        self.is_closing = True
        for process in self.processes:
            process.kill()
        self.slots.release()
        self.thread.join(PARTING_SECONDS)
        for process in self.processes:
            process.join(PARTING_SECONDS)
        for pipe in self.pipes:
            pipe.close()

    def _take(self, num_steps: int, pin_memory: bool, device: int | None) -> None:
        """Receive the steps in turn, and hand any failure to whoever waits for the step."""
        if device is not None:
            torch.cuda.set_device(device)  # pinned memory belongs to a device's context
        try:
            for number in range(num_steps):
                self.slots.acquire()
                if self.is_closing:
                    return
                item = pickle.loads(self._receive(number % len(self.processes)))
                if isinstance(item, _Failure):
                    item.error.add_note(item.stack)
                    raise item.error
                data = _as_tensors(*item)
                self.ready.put(data.pin() if pin_memory else data)
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self.ready.put(error)

    def _receive(self, number: int) -> bytes:
        """Return what a process sends next. Raises TransientError as soon as any of them is known to be dead."""
        pipe = self.pipes[number]
        at_work = {process.sentinel: process for process in self.processes}
        while True:
            found = connection.wait([pipe, *at_work])
            if pipe in found:
                try:
                    return pipe.recv_bytes()
                except (EOFError, OSError):  # it ended before, or within, the message
                    raise _death(self.processes[number]) from None
            for sentinel in found:
                assert isinstance(sentinel, int)
                process = at_work.pop(sentinel)
                process.join(0)
                if process.exitcode not in (0, SERVER_GONE):  # 0: it had sent all of its steps
                    raise _death(process)


def _death(process: multiprocessing.process.BaseProcess) -> TransientError:
    process.join(PARTING_SECONDS)  # until its exit code is known
    code = process.exitcode
    if code is None or code >= 0:
        return TransientError(f"a loader process (pid {process.pid}) has ended; run the same command again")
    name = signal.Signals(-code).name
    why = CAUSES.get(signal.Signals(-code), "run the same command again")
    return TransientError(f"a loader process (pid {process.pid}) was killed by {name}; {why}")


@contextmanager
def _signals_are_the_trainers() -> Iterator[None]:
    """Let what is started here inherit a mask: no signal of the trainer's reaches it, from its first instruction on.

    To the trainer's own process the kernel delivers one that comes meanwhile through another thread, or at the end.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINERS_SIGNALS)
    try:
        resource_tracker.ensure_running()  # Python starts it beside the server, and then takes two from the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, TRAINERS_SIGNALS)
        forkserver.set_forkserver_preload(["__main__", __name__])  # torch is imported once for all
        forkserver.ensure_running()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _prepare(sending: connection.Connection, batches: StepBatches, steps: range) -> None:
    """What a loader process does: prepare its steps one after the other, as far ahead as the pipe takes them."""
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    torch.set_num_threads(1)  # the cores are the other processes'
    for step in steps:
        try:
            message = pickle.dumps(_as_arrays(batches[step]), protocol=5)
        except Exception as error:  # noqa: BLE001 (the trainer raises it)
            message = _pickled_failure(error)
        try:
            sending.send_bytes(message)
        except BrokenPipeError:  # the trainer has ended; so does this process, any moment
            return


def _end_with_trainer() -> None:
    """End this process when the trainer is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _pickled_failure(error: Exception) -> bytes:
    stack = "".join(traceback.format_exception(error))
    try:
        message = pickle.dumps(_Failure(error, stack))
        pickle.loads(message)  # some exceptions can be pickled only
    except Exception:  # noqa: BLE001 (it may raise anything)
        message = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), stack))
    return message


def _as_arrays(data: StepData) -> tuple:
    """Return a step as NumPy arrays, which pickle copies once and as they are."""
    batches = [(*(tensor.numpy() for tensor in batch[:-1]), batch.longest) for batch in data.micro_batches]
    return batches, [sources.numpy() for sources in data.row_sources], data.facts


def _as_tensors(batches: list[tuple], row_sources: list, facts: tuple) -> StepData:
    tensors = [PackedBatch._make([*map(torch.from_numpy, batch[:-1]), batch[-1]]) for batch in batches]
    return StepData(tensors, [torch.from_numpy(sources) for sources in row_sources], facts)  # type: ignore[arg-type]
