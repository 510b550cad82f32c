"""Where the time of a step goes: phases of the trainer, and DeepSpeed's collectives within them."""

import math
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


class StepTimes:
    """When a step and its phases began and ended, by the device's clock; on CUDA to be read once it is over."""

    def __init__(self, device: torch.device, before: Any):
        """before: when the step before ended; None for the first."""
        self.is_cuda, self.before = device.type == "cuda", before
        self.begin = _now(device)
        self.end: Any = None
        self.spans: list[tuple[str, Any, Any]] = []  # name, begin, end

    def wait(self) -> None:
        """Wait until the device has done all that was launched before the step was closed."""
        if self.is_cuda:
            self.end.synchronize()

    def seconds(self) -> dict[str, float]:
        """Return `step_seconds`, and `forward_seconds` and so on, one of each of PHASES.

        `communication_seconds` is what the others waited for other ranks and for the network. It lies within them,
        wholly or in part, so that only the others add up to the step. On CUDA, collectives that overlap computation
        count on their own stream.
        """
        found = dict.fromkeys(PHASES, 0.0)
        for name, begin, end in self.spans:
            found[name] += self._between(begin, end)
        return {
            **{f"{name}_seconds": spent for name, spent in found.items()},
            "step_seconds": self._between(self.begin, self.end),
        }

    def idle_seconds(self) -> float:
        """Return how long the device had no step to do before this one; inf before the first."""
        return math.inf if self.before is None else self._between(self.before, self.begin)

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1000 if self.is_cuda else end - begin


class StepTimer:
    """Times the phases of one step after the other, on the device's own clock.

    On CUDA a phase is the time between two events of the stream it was called on, which costs the step no waiting. On
    the CPU it is wall-clock time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.times = StepTimes(device, None)

    def start(self) -> None:
        """Begin a step: what is timed from here on is its own."""
        self.times = StepTimes(self.device, self.times.end)

    def close(self) -> StepTimes:
        """End the step and return its times."""
        self.times.end = _now(self.device)
        return self.times

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside as a part of `name`, one of PHASES. Phases may lie within each other."""
        spans, begin = self.times.spans, _now(self.device)
        try:
            yield
        finally:
            spans.append((name, begin, _now(self.device)))


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
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
