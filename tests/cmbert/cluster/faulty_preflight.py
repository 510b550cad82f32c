"""`cmbert preflight` with one fault put into one node, as FAULT=kind:node says."""

import ctypes
import os
import sys
import time
from typing import Any

import torch

from cmbert.cli import main
from cmbert.cluster import links, node_checks, preflight

KIND, NODE = os.environ["FAULT"].split(":")
MINE = node_checks.node_name() == NODE
SLOW_SECONDS = {"link": 0.02, "matmul": 0.3}  # tens of times what a sound node takes


class SlowGroup:
    """A group whose other ranks wait for this one."""

    def __init__(self, group: Any):
        self.group = group

    def allreduce(self, values: list[torch.Tensor]) -> Any:
        time.sleep(SLOW_SECONDS["link"])
        return self.group.allreduce(values)


def slow_group(*arguments: Any) -> SlowGroup:
    return SlowGroup(sound_group(*arguments))


def slow_matmul(device: torch.device) -> float:
    return sound_matmul(device) + SLOW_SECONDS["matmul"]


def hang(*arguments: Any) -> Any:
    time.sleep(600)


def keep_the_gil(*arguments: Any) -> Any:
    ctypes.PyDLL(None).sleep(600)


sound_group, sound_matmul = links._open_group, node_checks.time_matmul
node_checks.SLOW_FACTOR = 10.0  # more than a busy machine makes
links.LINK_SECONDS = preflight.LINK_SECONDS = 4

if __name__ == "__main__":
    if MINE:
        match KIND:
            case "slow_link":
                links._open_group = slow_group
            case "hanging_link":
                links.time_all_reduce = hang
            case "slow_matmul":
                node_checks.time_matmul = slow_matmul
            case "stuck":
                preflight._most_seconds = lambda wait_seconds: 1.0
                node_checks.time_matmul = keep_the_gil
            case "silent":
                sys.exit(1)
    sys.exit(main(["preflight", *sys.argv[1:]]))
