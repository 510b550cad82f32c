"""Whom Slurm's shells and steps take a process for: the real variables of each, read as a training reads them."""

import json
import sys

import pytest

from tests.slurm.cluster import Cluster

PRINT = (
    "import json, os; from cmbert.cluster.distributed import read_launch; launch = read_launch(os.environ); "
    "print(json.dumps([launch.rank, launch.world_size, launch.local_rank]))"
)
TWO = ["--nodes=1", "--ntasks=2", "--cpus-per-task=1", "--quiet"]
WAYS = {
    "srun": (["srun", *TWO], [[0, 2, 0], [1, 2, 1]]),
    "srun from a shell of one rank": (
        ["env", "RANK=0", "WORLD_SIZE=1", "LOCAL_RANK=0", "srun", *TWO],
        [[0, 2, 0], [1, 2, 1]],
    ),
    "srun --mpi=pmi2": (["srun", "--mpi=pmi2", *TWO], [[0, 2, 0], [1, 2, 1]]),
    "srun on two nodes": (["srun", "--nodes=2", "--ntasks=2", "--quiet"], [[0, 2, 0], [1, 2, 0]]),
    "salloc's shell on the login node": (["salloc", *TWO], [[0, 1, 0]]),
    "salloc's shell on a node": (["salloc", *TWO, "srun", "--interactive"], [[0, 1, 0]]),
    "srun --pty": (["salloc", *TWO, "srun", "--ntasks=1", "--pty"], [[0, 1, 0]]),
    "srun in salloc's shell": (["salloc", *TWO, "srun"], [[0, 2, 0], [1, 2, 1]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_ranks(slurm: Cluster, way: str) -> None:
    command, expected = WAYS[way]
    output = slurm.call(*command, sys.executable, "-c", PRINT)
    assert sorted(json.loads(line) for line in output.split("\n") if line.startswith("[")) == expected
