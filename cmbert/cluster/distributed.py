"""Who am I among the ranks, and how do we decide together. Under any launcher (launchers.py), or alone."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from cmbert.cluster.launchers import variables_in
from cmbert.environment import number_in
from cmbert.errors import CmbertError, ConfigError

FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below Linux's ephemeral range, which starts at 32,768


@dataclass(frozen=True)
class Launch:
    """This process among all."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    local_size: int = 1
    """Ranks on this node, where the launcher says it."""


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Find rank, world size and rendezvous in the environment; alone when no launcher left a trace.

    Raises ConfigError for what is no number, no rank of that many, or leaves open where rank 0 is.
    """
    names = variables_in(environment)
    if names is None:
        return Launch(rank=0, world_size=1, local_rank=0, address="127.0.0.1", port=_free_port())
    rank_name, size_name, local_name, local_size_name = names
    rank, world_size = number_in(environment, rank_name), number_in(environment, size_name)
    if not 0 <= rank < world_size:
        raise ConfigError(f"environment: {rank_name}={rank} of {size_name}={world_size}; check the launcher")
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=number_in(environment, local_name),
        address=_address(environment, world_size, local_size_name),
        port=_port(environment),
        local_size=number_in(environment, local_size_name) or 1,
    )


def _address(environment: Mapping[str, str], world_size: int, local_size_name: str) -> str:
    found = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR")
    if found:
        return found
    if local_size_name in environment and number_in(environment, local_size_name) < world_size:
        raise ConfigError(
            "environment: ranks on several nodes, and no MASTER_ADDR; set it to the address of rank 0's node"
        )
    return "127.0.0.1"


def _port(environment: Mapping[str, str]) -> int:
    if environment.get("MASTER_PORT"):
        return number_in(environment, "MASTER_PORT")
    job = number_in(environment, "SLURM_JOB_ID")
    return FIRST_PORT + job % NUM_PORTS  # two jobs that share a node must not meet


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def select_device(launch: Launch) -> torch.device:
    """Return this rank's GPU when the machine has one, else the CPU; GPUs are dealt by local rank."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found, needed = torch.cuda.device_count(), max(launch.local_size, launch.local_rank + 1)
    if needed > found:
        raise ConfigError(f"this node shows {found} GPUs, and {needed} ranks are on it: start one process per GPU")
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def to_device(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Return numbers as float64 on `device`, by a copy that the host does not wait for."""
    return torch.tensor(values, dtype=torch.float64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def of_every_rank(values: torch.Tensor, launch: Launch) -> torch.Tensor:
    """Return (ranks, values): row r is `values` (float64) of rank r, on every rank, by one all-reduce.

    On a GPU the host does not wait. Sums over the rows do not depend on the order that a network adds in.
    """
    rows = values.new_zeros(launch.world_size, len(values))
    rows[launch.rank] = values
    torch.distributed.all_reduce(rows)
    return rows


def sum_over_ranks(values: Sequence[float | torch.Tensor], device: torch.device) -> list[float]:
    """Return the sum over all ranks of each value, the same on every rank. Exact for counts below 2^53."""
    tensor = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on at least one rank; every rank gets the same answer."""
    return sum_over_ranks([float(flag)], device)[0] > 0


def gather_from_ranks(value: Any) -> list[Any]:
    """Return `value` of every rank, in their order, the same on every rank. It is pickled: keep it small."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def from_first_rank(action: Callable[[], Any]) -> Any:
    """Let rank 0 do `action` while the others wait; return its result, pickled, on every rank.

    What it raises of OSError and CmbertError, every rank raises.
    """
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = action()
        except (OSError, CmbertError) as error:
            outcome[1] = error.with_traceback(None)
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_first_rank(action: Callable[[], object]) -> OSError | None:
    """Let rank 0 do `action` while the others wait; every rank returns what went wrong with the disk, or None.

    Raises CmbertError on every rank if rank 0 does.
    """

    def act() -> None:
        action()

    try:
        from_first_rank(act)
    except OSError as error:
        return error
    return None
