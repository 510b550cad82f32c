"""Ranks are read from whichever launcher is there."""

import pytest

from cmbert.errors import ConfigError
from cmbert.train.distributed import read_launch

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
SRUN |= {"SLURM_JOB_ID": "12007", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_PORT": "77"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, (3, 8, 1, "n1", 29)),
        (SRUN, (2, 4, 0, "10.0.0.1", 20_007)),
        (OPEN_MPI, (1, 2, 1, "127.0.0.1", 20_000)),
        (MPICH, (1, 2, 0, "127.0.0.1", 77)),
    ],
)
def test_launchers(environment: dict[str, str], expected: tuple) -> None:
    launch = read_launch(environment)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.address, launch.port) == expected


def test_alone_also_in_a_slurm_batch_step() -> None:
    for environment in ({}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "5"}):
        launch = read_launch(environment)
        assert (launch.rank, launch.world_size) == (0, 1)


def test_nonsense_is_named() -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE='two' is not a number"):
        read_launch({"RANK": "0", "WORLD_SIZE": "two"})
