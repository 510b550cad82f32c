"""All-reduces between pairs of nodes, timed: a slow or dead link is found beside the sound ones.

The nodes stand in a ring and each is tried with both neighbours, so that one of the two can be told from the other.
"""

import os
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed
from torch.distributed import PrefixStore, Store

from cmbert.train.distributed import Launch, select_device
from cmbert.train.node_checks import Link

LINK_SECONDS = 60  # an all-reduce that takes longer has failed (ours)
LINK_VALUES = {"cuda": 16 << 20, "cpu": 1 << 18}  # of fp32 per all-reduce (ours)
LINK_REPEATS = 5  # the fastest counts (ours)

Pair = tuple[str, str]


def pairs_of(nodes: Sequence[str]) -> list[list[Pair]]:
    """Return rounds of pairs of neighbours in a ring, no node twice in a round; one node pairs with itself."""
    ring = [(a, b) for a, b in zip(nodes, [*nodes[1:], nodes[0]], strict=True)]
    if len(nodes) < 3:
        return [ring[:1]]
    closing = ring[-1:] if len(nodes) % 2 else []
    inner = ring[: len(ring) - len(closing)]
    return [pairs for pairs in (inner[::2], inner[1::2], closing) if pairs]


def link_ranks(placed: Sequence[str]) -> dict[Pair, list[int]]:
    """Return each pair's ranks in the order of rounds. placed: the node of each rank."""
    if len(placed) < 2:
        return {}
    rounds = pairs_of(list(dict.fromkeys(placed)))
    return {pair: [rank for rank, node in enumerate(placed) if node in pair] for pairs in rounds for pair in pairs}


def time_links(store: Store, launch: Launch, placed: Sequence[str]) -> list[Link]:
    """Time this rank's all-reduces, in the same order on every rank."""
    device = select_device(launch)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a timeout is an error to catch, not the end of the process
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("links", store), rank=launch.rank, world_size=launch.world_size,
        timeout=timedelta(seconds=LINK_SECONDS),
    )  # fmt: skip
    groups = {pair: torch.distributed.new_group(ranks) for pair, ranks in link_ranks(placed).items()}
    mine = placed[launch.rank]
    return [Link(launch.rank, pair, time_all_reduce(group, device)) for pair, group in groups.items() if mine in pair]


def time_all_reduce(group: torch.distributed.ProcessGroup, device: torch.device) -> float | None:
    """Return the seconds of the fastest of some all-reduces, or None if one failed or took LINK_SECONDS."""
    values = torch.ones(LINK_VALUES[device.type], device=device)
    best = float("inf")
    try:
        for _ in range(LINK_REPEATS):
            started = time.perf_counter()
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=group)
            values[0].item()  # waits for the device
            best = min(best, time.perf_counter() - started)
    except RuntimeError:  # of gloo and of NCCL alike: a peer is gone or silent
        return None
    return best
