"""The machine that a plan is printed on: its GPUs, cores and free memory. Torch only where a GPU may be."""

import os
from dataclasses import dataclass
from pathlib import Path

from cmbert.config.batch import possible_micro_batches
from cmbert.config.schema import TrainConfig
from cmbert.memory import free_host_bytes

GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")  # in /dev: NVIDIA's driver, Windows' for Linux, AMD's
DEVICES = Path("/dev")
MEASURED_STEPS = 10  # of training, by --measure (ours)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes here."""

    num_gpus: int
    num_cores: int
    """That this process may use."""
    memory_bytes: int
    """Of one GPU, all of it; without a GPU, what a new process of this machine can have."""
    name: str
    """Of the GPU; empty without one."""

    @property
    def most_processes(self) -> int:
        """The most processes that are worth starting: one a GPU, or one a core."""
        return self.num_gpus or self.num_cores


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What steps of a recipe took on this machine, and what the whole stage takes at that rate."""

    num_processes: int
    num_steps: int
    """Steps that count."""
    step_seconds: float
    """Of a whole step, waiting for data included; the median."""
    tokens_per_second: float
    """Row positions, of all processes."""
    training_hours: float
    """Of all steps of the stage."""
    heldout_hours: float
    """Of the held-out scores between them, at the rate of forward passes."""
    start_seconds: float
    """From the command to the beginning of the first step, once a call."""
    memory_bytes: int
    """The most that one process held: on a GPU torch's allocator, on a CPU all of the process."""
    made_up_rows: bool
    """Whether rows were made up, since shards or tokenizer are not there yet."""

    @property
    def hours(self) -> float:
        """Of the whole stage."""
        return self.start_seconds / 3600 + self.training_hours + self.heldout_hours


def look_at_machine() -> Machine:
    """Return this machine."""
    cores = len(os.sched_getaffinity(0))
    if any(found for name in GPU_FILES for found in DEVICES.glob(name)):
        import torch

        if count := torch.cuda.device_count():
            properties = torch.cuda.get_device_properties(0)
            return Machine(num_gpus=count, num_cores=cores, memory_bytes=properties.total_memory, name=properties.name)
    return Machine(num_gpus=0, num_cores=cores, memory_bytes=free_host_bytes(), name="")


def processes_here(train: TrainConfig, machine: Machine) -> int:
    """Return how many processes a plan is for if nobody says it: all GPUs that a step divides over, else one process.

    One is what `cmbert train` starts by itself; on a CPU it uses every core.
    """
    return next(count for count in range(max(machine.num_gpus, 1), 0, -1) if possible_micro_batches(train, count))
