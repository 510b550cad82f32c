"""What a script that a test starts under a launcher does: join the ranks, find something, save it, leave."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cmbert.cluster.distributed import read_launch
from cmbert.cluster.ending import leave
from cmbert.zero.engine import start_distributed, stop_distributed


def save_found(find: Callable[[Path], object]) -> None:
    """Call `find` on every rank with the output's folder; rank 0 saves what it returns to the path in argv."""
    launch, output = read_launch(os.environ), Path(sys.argv[1])
    start_distributed(launch, torch.device("cpu"))
    found = find(output.parent)
    if launch.rank == 0:
        torch.save(found, output)
    stop_distributed()
    leave(0)  # as `cmbert train` does: finalisation aborts a rank now and then
