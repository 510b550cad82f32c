"""Where the time of a step goes: phases of the trainer, and DeepSpeed's collectives within them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

COMMUNICATION = "communication"
PHASES = ("forward", "backward", "optimizer", COMMUNICATION)
COLLECTIVES = frozenset({
    "all_reduce", "inference_all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor",
    "all_gather", "all_gather_into_tensor", "all_gather_base", "all_gather_coalesced", "all_gather_object",
    "all_to_all", "all_to_all_single", "broadcast", "broadcast_object_list", "gather", "scatter",
    "send", "recv", "isend", "irecv", "barrier", "monitored_barrier",
})  # fmt: skip
"""Methods of DeepSpeed's communication backend that move data or wait for other ranks."""


class StepTimer:
    """Adds up the seconds of named phases of one step, on the device's own clock.

    On CUDA a phase is the time between two events of the stream it was called on, which costs the step no waiting; they
    are read once, when it is over. On the CPU it is wall-clock time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spans: list[tuple[str, Any, Any]] = []  # name, begin, end

    def start(self) -> None:
        """Begin a step: forget what was timed since the last one (an evaluation, a checkpoint)."""
        self.spans = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside as a part of `name`, one of PHASES. Phases may lie within each other."""
        begin = self._now()
        try:
            yield
        finally:
            self.spans.append((name, begin, self._now()))

    def read(self) -> dict[str, float]:
        """Return `forward_seconds` and so on, one of each of PHASES, and begin anew; on CUDA waits for the device.

        `communication_seconds` is what the others waited for other ranks and for the network. It lies within them,
        wholly or in part, so that only the others add up to the step. On CUDA, collectives that overlap computation
        count on their own stream.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for name, begin, end in self.spans:
            seconds[name] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        self.spans = []
        return {f"{name}_seconds": spent for name, spent in seconds.items()}

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _Timed:
    """Stands for `wrapped`, whose methods of the given names count as communication; all else is passed through."""

    def __init__(self, wrapped: Any, timer: StepTimer, names: frozenset[str]):
        self._wrapped, self._timer, self._names = wrapped, timer, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        if name not in self._names:
            return found

        def timed(*arguments: Any, **options: Any) -> Any:
            with self._timer.phase(COMMUNICATION):
                result = found(*arguments, **options)
            # An asynchronous collective returns a handle: what is waited for is in its wait().
            return _Timed(result, self._timer, frozenset(["wait"])) if hasattr(result, "wait") else result

        return timed


def time_collectives(backend: Any, timer: StepTimer) -> Any:
    """Return a stand-in for DeepSpeed's `deepspeed.comm.comm.cdb` that adds its collectives to `timer`.

    A stand-in that is given gets a new timer. Calls past this object, as torch.distributed's own, do not count.
    """
    wrapped = backend._wrapped if isinstance(backend, _Timed) else backend
    return _Timed(wrapped, timer, COLLECTIVES)
