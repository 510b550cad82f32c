"""Loader processes: what they raise, who may kill them, and that none is left when their trainer has ended."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cmbert.data.batches import PackedBatch, StepData, StepFacts
from cmbert.data.loader_processes import iterate_steps
from cmbert.errors import ShardError, TransientError
from tests import processes
from tests.processes import descendants, left_of

NUM_WORKERS = 2
SECONDS = 60  # that a start may take on a busy machine
TRAINER = """import os, signal, sys
from cmbert.data.loader_processes import iterate_steps
from tests.cmbert.data.test_loader_processes import Steps
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: heard.append(number))

def main():
    print("listening", flush=True)
    for data in iterate_steps(Steps(int(sys.argv[1])), range(int(sys.argv[2])), 2, False):
        print(data.facts.first_row, flush=True)
    print("heard", sorted({signal.Signals(number).name for number in heard}))

if __name__ == "__main__":
    main()
"""


class Steps:
    """Step s has `num_tokens` tokens s. At `fault_step` something else happens."""

    def __init__(self, num_tokens: int = 8, fault: str = "", fault_step: int = 3):
        self.num_tokens, self.fault, self.fault_step = num_tokens, fault, fault_step

    def __getitem__(self, step: int) -> StepData:
        if self.fault and step == self.fault_step:
            self.fail()
        ids = torch.full((self.num_tokens,), step)
        batch = PackedBatch(ids, torch.tensor([0, 8]), ids[:0], ids[:0], ids.int(), self.num_tokens)
        return StepData([batch], [torch.tensor([step])], StepFacts(step, [8], 1, {8: 1}, [8], b"record"))

    def fail(self) -> None:
        match self.fault:
            case "shard":
                raise ShardError("shards/00000.bin: block 7 is damaged; copy it again")
            case "disk":
                raise OSError(errno.EIO, os.strerror(errno.EIO), "shards/00000.bin")
            case "other":
                raise ParticularError("one", "two")
            case "exit":
                os._exit(3)
            case "bus":
                os.kill(os.getpid(), signal.SIGBUS)


class ParticularError(Exception):
    """Can be pickled, but not read back."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


def in_processes(steps: Steps, count: int) -> Iterator[StepData]:
    return iterate_steps(steps, range(count), NUM_WORKERS, pin_memory=False)  # type: ignore[arg-type]


def own() -> list[processes.Process]:
    """Return the loader processes of this process."""
    return processes.loaders(descendants(os.getpid()))


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Whatever a test does, no loader process lives on."""
    yield
    assert left_of(own(), 10) == []


def test_steps_come_in_order_and_as_they_are() -> None:
    found = list(in_processes(Steps(num_tokens=100_000), 9))  # more than a pipe holds
    for step, data in enumerate(found):
        expected = Steps(100_000)[step]
        for one, other in zip(data.micro_batches[0][:-1], expected.micro_batches[0][:-1], strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
        assert data.facts == expected.facts
        assert torch.equal(data.row_sources[0], expected.row_sources[0])
        data.micro_batches[0].input_ids.add_(1)  # the trainer's own
    assert len(found) == 9


def test_a_pass_that_is_given_up_leaves_no_process() -> None:
    steps = in_processes(Steps(num_tokens=100_000), 1000)
    next(steps)
    started = own()
    assert len(started) == NUM_WORKERS
    steps.close()  # type: ignore[attr-defined]
    assert left_of(started, 0.5) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("shard", ShardError, "^shards/00000.bin: block 7 is damaged"),
        ("disk", OSError, "Input/output error: 'shards/00000.bin'"),
        ("other", RuntimeError, "ParticularError: one and two"),
        ("exit", TransientError, "a loader process .* has ended"),
        ("bus", TransientError, "was killed by SIGBUS; a shard in use could not be read"),
    ],
)
def test_what_goes_wrong_in_a_process(fault: str, kind: type[Exception], text: str) -> None:
    steps = in_processes(Steps(fault=fault), 9)
    if kind is not TransientError:  # after a death the steps before it need not arrive
        assert [next(steps).facts.first_row for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match=text) as caught:
        list(steps)
    assert "\n" not in str(caught.value)  # one line
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, "shards/00000.bin")
    if kind is not TransientError:
        assert " in fail\n" in caught.value.__notes__[0]  # where it was, for whoever prints a traceback


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_known_at_once(victim: int) -> None:
    steps = in_processes(Steps(), 1_000_000)
    next(steps)
    os.kill(own()[victim].pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(TransientError, match="was killed by SIGKILL; most often"):
        list(steps)
    assert time.monotonic() - started < 4


@pytest.mark.filterwarnings("ignore:resource_tracker")  # Python says that it was killed
@pytest.mark.parametrize("helpers", [processes.fork_servers, processes.resource_trackers])
def test_python_s_helpers_may_be_killed(helpers: Callable[[list[processes.Process]], list[processes.Process]]) -> None:
    steps = in_processes(Steps(num_tokens=100_000), 50)
    next(steps)
    loaders = own()
    for helper in helpers(descendants(os.getpid())):
        os.kill(helper.pid, signal.SIGKILL)
    assert len([next(steps) for _ in range(30)]) == 30
    steps.close()  # type: ignore[attr-defined]
    assert left_of(loaders, 5) == []
    assert len(list(in_processes(Steps(), 5))) == 5  # a new one is started


def start_trainer(num_tokens: int, num_steps: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(num_tokens), str(num_steps)], cwd=root, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_signals_to_all_processes_reach_the_trainer_alone() -> None:
    """From the first instruction of each: hundreds of signals while they start and while they work."""
    trainer = start_trainer(8, 2000)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "listening\n"
    silence = threading.Event()

    def shout() -> None:
        while not silence.wait(0.01):
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                os.killpg(trainer.pid, number)

    shouting = threading.Thread(target=shout)
    shouting.start()
    rows = [trainer.stdout.readline() for _ in range(2000)]
    silence.set()
    shouting.join()
    heard = trainer.stdout.readline()
    _, errors = trainer.communicate(timeout=SECONDS)
    assert rows == [f"{step}\n" for step in range(2000)]
    assert (heard, errors, trainer.returncode) == ("heard ['SIGINT', 'SIGTERM', 'SIGUSR1']\n", "", 0)


def test_nothing_is_left_of_a_trainer_that_is_killed() -> None:
    before = set(os.listdir("/dev/shm"))
    trainer = start_trainer(100_000, 1_000_000)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "listening\n"
    assert trainer.stdout.readline() == "0\n"
    below = descendants(trainer.pid)
    assert len(processes.loaders(below)) == NUM_WORKERS
    assert len(processes.fork_servers(below)) == len(processes.resource_trackers(below)) == 1
    trainer.kill()
    _, errors = trainer.communicate(timeout=SECONDS)
    assert left_of(below, 10) == []
    assert errors == ""
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "torch" in name or "sem.mp" in name}
