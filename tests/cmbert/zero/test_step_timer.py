"""Phases add up, collectives count inside them, and nothing is synchronised before the step is over."""

import math
import time
from typing import Any

import pytest
import torch

from cmbert.zero.step_timer import COLLECTIVES, StepTimer, time_collectives

CPU = torch.device("cpu")


def test_phases_add_up_and_start_anew() -> None:
    timer = StepTimer(CPU)
    with timer.phase("forward"):
        time.sleep(0.02)
    timer.start()  # what lies between two steps does not count
    for _ in range(2):
        with timer.phase("backward"):
            time.sleep(0.02)
    seconds = timer.close().seconds()
    phases = ["forward_seconds", "backward_seconds", "optimizer_seconds", "communication_seconds"]
    assert list(seconds) == [*phases, "step_seconds"]
    assert seconds["forward_seconds"] == 0
    assert 0.04 <= seconds["backward_seconds"] <= seconds["step_seconds"] < 1
    assert timer.times.idle_seconds() == math.inf  # nothing came before
    time.sleep(0.02)
    timer.start()
    times = timer.close()
    assert not any(times.seconds()[phase] for phase in phases)
    assert 0.02 <= times.idle_seconds() < 1


def test_a_phase_that_fails_is_counted() -> None:
    timer = StepTimer(CPU)

    def fail() -> None:
        with timer.phase("optimizer"):
            time.sleep(0.01)
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert timer.close().seconds()["optimizer_seconds"] >= 0.01


class Handle:
    done = False

    def wait(self) -> str:
        time.sleep(0.03)
        return "waited"


class Backend:
    name = "torch"

    def all_reduce(self, tensor: list, op: str, group: Any = None, async_op: bool = False) -> Any:
        time.sleep(0.01)
        tensor.append(op)
        return Handle() if async_op else None

    def get_rank(self, group: Any = None) -> int:
        time.sleep(0.01)
        return 7


def test_collectives_count_and_do_what_they_did() -> None:
    timer, sent = StepTimer(CPU), []
    backend = time_collectives(Backend(), timer)
    with timer.phase("backward"):
        assert backend.all_reduce(sent, "sum") is None
        handle = backend.all_reduce(sent, op="max", async_op=True)
        assert handle.done is False
        assert (backend.get_rank(), backend.name) == (7, "torch")
    assert sent == ["sum", "max"]
    seconds = timer.close().seconds()
    assert 0.02 <= seconds["communication_seconds"] < seconds["backward_seconds"] - 0.009, "get_rank is no collective"
    timer.start()
    assert handle.wait() == "waited"
    assert timer.close().seconds()["communication_seconds"] >= 0.03
    with pytest.raises(AttributeError, match="no_such_thing"):
        backend.no_such_thing  # noqa: B018


def test_a_second_run_of_the_process_has_its_own_timer() -> None:
    first, second = StepTimer(CPU), StepTimer(CPU)
    backend = time_collectives(time_collectives(Backend(), first), second)
    backend.all_reduce([], "sum")
    assert second.close().seconds()["communication_seconds"] >= 0.01
    assert first.close().seconds()["communication_seconds"] == 0


def test_the_names_are_those_of_deepspeed() -> None:
    from deepspeed.comm.torch import TorchBackend

    assert not [name for name in COLLECTIVES if not hasattr(TorchBackend, name)]


def test_cuda_events_are_read_only_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, end: "Event") -> float:
            log.append("elapsed")
            return 250.0  # milliseconds

        def synchronize(self) -> None:
            log.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = StepTimer(torch.device("cuda"))
    timer.start()
    log.clear()
    for _ in range(2):
        with timer.phase("forward"):
            log.append("work")
    times = timer.close()
    timer.start()  # the next step is launched before this one is read
    assert log == [*["record", "work", "record"] * 2, "record", "record"]
    times.wait()
    assert times.seconds()["forward_seconds"] == 0.5
    assert log[8:] == ["synchronize", "elapsed", "elapsed", "elapsed"]
