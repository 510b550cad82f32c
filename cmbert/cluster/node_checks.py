"""What one rank can find out about its node alone, and what the figures of all say about each node."""

import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from cmbert.environment import number_in
from cmbert.errors import first_line
from cmbert.memory import free_host_bytes

SLOW_FACTOR = 1.5  # times the median: a node that makes the others wait
FREE_GPU_SHARE = 0.9  # less free: somebody else's process is left on the GPU
FREE_MEMORY_SHARE = 0.5  # of the median node's free memory: somebody else's process is left on the node
DISK_BYTES = 8 << 20  # written and read back per folder
MATMUL_SIZES = {"cuda": 4096, "cpu": 512}  # a side of the square matrices
MATMUL_REPEATS = 100  # the fastest counts

T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What one rank saw of its node."""

    rank: int
    node: str
    faults: list[str]
    """What is wrong whatever the other nodes say."""
    num_gpus: int
    free_memory_bytes: int
    matmul_seconds: float | None
    """None: not timed, because of a fault."""


@dataclass(frozen=True)
class Link:
    """An all-reduce between all ranks of two nodes, as one of them timed it."""

    rank: int
    nodes: tuple[str, str]
    seconds: float | None
    """None: it failed or took too long."""


@dataclass
class Judgement:
    """Bad nodes with the reasons; and links that are broken or slow with no single node to blame for it."""

    bad: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def blame(self, node: str, reason: str) -> None:
        reasons = self.bad.setdefault(node, [])
        if reason not in reasons:
            reasons.append(reason)


def node_name() -> str:
    """Return this node's name as Slurm writes it, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def within(seconds: float, action: Callable[[], T]) -> T | None:
    """Return what `action` returns, or None if it takes longer or raises; what hangs is left behind in its thread."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def examine(rank: int, local_rank: int, folders: Sequence[Path]) -> Findings:
    """Look at this rank's GPU and, on the node's first rank, at its folders. Takes seconds, raises nothing."""
    num_gpus = torch.cuda.device_count()
    faults = gpu_faults(local_rank, num_gpus)
    if local_rank == 0:
        faults += [fault for folder in folders if (fault := disk_fault(folder))]
    seconds = None
    if not faults:
        try:
            seconds = time_matmul(torch.device("cuda", local_rank) if num_gpus else torch.device("cpu"))
        except RuntimeError as error:  # how CUDA reports a broken GPU
            faults.append(f"GPU {local_rank}: matmul: {first_line(error)}")
    return Findings(rank, node_name(), faults, num_gpus, free_host_bytes(), seconds)


def gpu_faults(local_rank: int, num_gpus: int) -> list[str]:
    """Return what is wrong with the GPUs that Slurm gave the node, and with this rank's."""
    promised = number_in(os.environ, "SLURM_GPUS_ON_NODE")
    if num_gpus < promised:
        return [f"{num_gpus} of {promised} GPUs are visible to torch"]
    if num_gpus == 0:
        return []
    if local_rank >= num_gpus:
        return [f"local rank {local_rank} has no GPU, {num_gpus} are visible to torch"]
    try:
        free, total = torch.cuda.mem_get_info(local_rank)
    except RuntimeError as error:
        return [f"GPU {local_rank}: {first_line(error)}"]
    if free < FREE_GPU_SHARE * total:
        return [f"GPU {local_rank}: {free / 1e9:.1f} of {total / 1e9:.1f} GB of its memory are free"]
    return []


def disk_fault(folder: Path) -> str | None:
    """Write a file, put it on disk and read it back; return what went wrong."""
    data = os.urandom(1 << 16) * (DISK_BYTES >> 16)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            return None if file.read() == data else f"{folder}: gives back other bytes than were written"
    except OSError as error:
        return f"{folder}: {error.strerror}"


def time_matmul(device: torch.device) -> float:
    """Return the seconds of the fastest of some square matrix products, bf16 on a GPU, fp32 on a CPU."""
    size, dtype = MATMUL_SIZES[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(MATMUL_REPEATS):
        started = time.perf_counter()
        corner = (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    if corner != size:
        raise RuntimeError(f"computes {corner}, must be {size}")
    return best


def judge(findings: Sequence[Findings], silent: Mapping[int, str]) -> Judgement:
    """Compare the nodes with each other. silent: ranks that did not answer, with their nodes."""
    judgement = Judgement()
    for rank, node in sorted(silent.items()):
        judgement.blame(node, f"rank {rank} did not answer")
    if not findings:
        return judgement
    gpus = max(found.num_gpus for found in findings)
    memory = statistics.median([found.free_memory_bytes for found in findings])
    timed = [found.matmul_seconds for found in findings if found.matmul_seconds is not None]
    median = statistics.median(timed) if timed else 0.0
    for found in findings:
        for fault in found.faults:
            judgement.blame(found.node, fault)
        if found.num_gpus < gpus and not found.faults:
            judgement.blame(found.node, f"{found.num_gpus} GPUs are visible to torch, elsewhere {gpus}")
        if found.free_memory_bytes < FREE_MEMORY_SHARE * memory:
            gigabytes = (
                f"{found.free_memory_bytes / 1e9:.1f} GB of memory are free, on the median node {memory / 1e9:.1f}"
            )
            judgement.blame(found.node, gigabytes)
        if found.matmul_seconds is not None and found.matmul_seconds > SLOW_FACTOR * median:
            slow = f"rank {found.rank}: matmul takes {found.matmul_seconds * 1e3:.1f} ms, the median {median * 1e3:.1f}"
            judgement.blame(found.node, slow)
    return judgement


def judge_links(links: Sequence[Link], expected: Mapping[tuple[str, str], Sequence[int]]) -> Judgement:
    """Blame a node all of whose all-reduces failed or were slow; its neighbours have a good one with others.

    Slow: against the median of the nodes' fastest, since a slow node has two in a ring, of three that makes most.
    expected: the ranks that take part in each all-reduce; one that did not report failed.
    """
    judgement = Judgement()
    slowest: dict[tuple[str, str], float] = {}
    for nodes, ranks in expected.items():
        seconds = {link.rank: link.seconds for link in links if link.nodes == nodes}
        slowest[nodes] = max(_seconds(seconds.get(rank)) for rank in ranks)
    of_node = {node: [nodes for nodes in slowest if node in nodes] for pair in slowest for node in pair}
    best = [min(slowest[nodes] for nodes in own) for own in of_node.values()]
    whole = [seconds for seconds in best if seconds < float("inf")]
    limit = SLOW_FACTOR * statistics.median(whole) if whole else 0.0
    ill = {nodes for nodes, seconds in slowest.items() if seconds > limit}
    for node, own in sorted(of_node.items()):
        is_alone = own == [(node, node)]  # else, where nothing works, it is the network or its settings
        if (whole or is_alone) and all(nodes in ill for nodes in own):
            judgement.blame(node, "; ".join(_describe(nodes, slowest[nodes], limit) for nodes in own))
    for nodes in sorted(ill):
        if not set(nodes) & set(judgement.bad):
            kind = judgement.broken if slowest[nodes] == float("inf") else judgement.slow
            kind.append(_describe(nodes, slowest[nodes], limit))
    return judgement


def _seconds(found: float | None) -> float:
    return float("inf") if found is None else found


def _describe(nodes: tuple[str, str], seconds: float, limit: float) -> str:
    what = "all-reduce on" if nodes[0] == nodes[1] else "all-reduce between"
    where = nodes[0] if nodes[0] == nodes[1] else " and ".join(nodes)
    if seconds == float("inf"):
        return f"{what} {where} failed"
    return f"{what} {where} takes {seconds * 1e3:.1f} ms, the median {limit / SLOW_FACTOR * 1e3:.1f}"
