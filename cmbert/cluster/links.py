"""All-reduces between pairs of nodes, timed: a slow or dead link is found beside the sound ones.

The nodes stand in a ring and each is tried with both neighbours, so that one of the two can be told from the other.
Each pair has a group of its own, which needs no other node.
"""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch.distributed import PrefixStore, Store

from cmbert.cluster.distributed import Launch, select_device
from cmbert.cluster.node_checks import Link, within

LINK_SECONDS = 60  # all-reduces of a pair that take longer have failed
LINK_VALUES = {"cuda": 16 << 20, "cpu": 1 << 18}  # of fp32 per all-reduce
LINK_BURST = {"cuda": 20, "cpu": 1}  # timed together: NCCL's blocking wait looks once in a millisecond
LINK_REPEATS = {"cuda": 5, "cpu": 50}  # of bursts, the fastest counts

Pair = tuple[str, str]

_open_groups: list[Any] = []  # never closed: closing can wait for a peer for ever


def pairs_of(nodes: Sequence[str]) -> list[list[Pair]]:
    """Return rounds of pairs of neighbours in a ring, no node twice in a round; one node pairs with itself."""
    ring = [(a, b) for a, b in zip(nodes, [*nodes[1:], nodes[0]], strict=True)]
    if len(nodes) < 3:
        return [ring[:1]]
    closing = ring[-1:] if len(nodes) % 2 else []
    inner = ring[: len(ring) - len(closing)]
    return [pairs for pairs in (inner[::2], inner[1::2], closing) if pairs]


def link_ranks(placed: Sequence[str]) -> list[dict[Pair, list[int]]]:
    """Return the rounds with each pair's ranks; none for a rank alone. placed: the node of each rank."""
    if len(placed) < 2:
        return []
    rounds = pairs_of(list(dict.fromkeys(placed)))
    return [{pair: [r for r, node in enumerate(placed) if node in pair] for pair in pairs} for pairs in rounds]


def time_link(store: Store, launch: Launch, pair: Pair, ranks: Sequence[int]) -> Link:
    """Time the all-reduces of a pair of nodes. Takes LINK_SECONDS at most, raises nothing.

    In a thread, since NCCL waits without limit for a peer that does not join a new communicator.
    """
    store = PrefixStore("/".join(pair), store)
    position = ranks.index(launch.rank)
    seconds = within(LINK_SECONDS, lambda: time_all_reduce(store, position, len(ranks), select_device(launch)))
    return Link(launch.rank, pair, seconds)


def time_all_reduce(store: Store, rank: int, size: int, device: torch.device) -> float | None:
    """Return the seconds of an all-reduce, the fastest of some; None if one failed."""
    burst, best = LINK_BURST[device.type], float("inf")
    try:
        group = _open_group(store, rank, size, device)
        values = torch.zeros(LINK_VALUES[device.type], device=device)
        for _ in range(LINK_REPEATS[device.type]):
            started = time.perf_counter()
            for work in [group.allreduce([values]) for _ in range(burst)]:
                work.wait()
            values[0].item()  # waits for the device
            best = min(best, (time.perf_counter() - started) / burst)
    except RuntimeError:  # of gloo and of NCCL alike: a peer is gone or silent
        return None
    return best


def _open_group(store: Store, rank: int, size: int, device: torch.device) -> Any:
    """Return a group of some ranks, whose collectives raise RuntimeError when they have waited too long."""
    timeout = timedelta(seconds=LINK_SECONDS / 2)  # before we give up ourselves: it ends what still runs on the GPU
    group: Any
    if device.type == "cuda":
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # else a timeout is the end of the process
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        group = torch.distributed.ProcessGroupNCCL(store, rank, size, options)
    else:
        group = torch.distributed.ProcessGroupGloo(store, rank, size, timeout)
    _open_groups.append(group)
    return group
