"""Ranks are read from whichever launcher is there."""

import pytest

from cmbert.cluster.distributed import read_launch
from cmbert.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1"}
TORCHRUN |= {"MASTER_PORT": "29"}
BATCH = {"SLURM_JOB_ID": "12007", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # sbatch's shell
SRUN = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
SALLOC = SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
PTY = SALLOC | {"SLURM_STEP_ID": "1", "SLURM_PTY_PORT": "40000"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_PORT": "77"}
PMI2 = SRUN | {"PMI_RANK": "2", "PMI_SIZE": "4"}  # srun --mpi=pmi2
ONE_A_NODE = TORCHRUN | {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
INHERITED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
TABLE = {
    "torchrun": (TORCHRUN, (3, 8, 1, "n1", 29)),
    "deepspeed": ({**TORCHRUN, "CROSS_RANK": "1"}, (3, 8, 1, "n1", 29)),
    "torchrun under srun": (SRUN | TORCHRUN, (3, 8, 1, "n1", 29)),
    "torchrun of one rank a node under srun": (SRUN | ONE_A_NODE, (1, 4, 0, "n1", 29)),
    "deepspeed on each node under srun": (SRUN | TORCHRUN | {"CROSS_RANK": "1"}, (3, 8, 1, "n1", 29)),
    "srun from a shell of one rank": (SRUN | INHERITED, (2, 4, 1, "10.0.0.1", 20_007)),
    "srun from a shell of torchrun": (SRUN | INHERITED | {"TORCHELASTIC_RUN_ID": "1"}, (2, 4, 1, "10.0.0.1", 20_007)),
    "srun from a shell of four ranks": (SRUN | INHERITED | {"WORLD_SIZE": "4"}, (2, 4, 1, "10.0.0.1", 20_007)),
    "srun": (SRUN, (2, 4, 1, "10.0.0.1", 20_007)),
    "srun --mpi=pmi2": (PMI2, (2, 4, 1, "10.0.0.1", 20_007)),
    "srun --mpi=pmix": (SRUN | {"PMIX_RANK": "2"}, (2, 4, 1, "10.0.0.1", 20_007)),
    "mpiexec of Open MPI": (OPEN_MPI, (1, 2, 1, "127.0.0.1", 20_000)),
    "mpiexec of MPICH": (MPICH, (1, 2, 1, "127.0.0.1", 77)),
    "mpiexec of MPICH in sbatch's shell": (BATCH | MPICH, (1, 2, 1, "127.0.0.1", 77)),
    "by hand": ({"RANK": "0", "WORLD_SIZE": "2"}, (0, 2, 0, "127.0.0.1", 20_000)),
}
ALONE = {"nothing": {}, "sbatch's shell": BATCH, "salloc's shell": SALLOC, "srun --pty": PTY}
ALONE["salloc's shell on the login node"] = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "16"}
WRONG = {
    "WORLD_SIZE='two' is not a number": {"RANK": "0", "WORLD_SIZE": "two"},
    "RANK=2 of WORLD_SIZE=2; check the launcher": {"RANK": "2", "WORLD_SIZE": "2"},
    "ranks on several nodes, and no MASTER_ADDR": OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "4"},
}


@pytest.mark.parametrize("launcher", TABLE)
def test_launchers(launcher: str) -> None:
    environment, expected = TABLE[launcher]
    launch = read_launch(environment)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.address, launch.port) == expected


@pytest.mark.parametrize("shell", ALONE)
def test_who_started_nobody_else_is_alone(shell: str) -> None:
    launch = read_launch(ALONE[shell])
    assert (launch.rank, launch.world_size, launch.local_rank) == (0, 1, 0)


@pytest.mark.parametrize("text", WRONG)
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_launch(WRONG[text])
