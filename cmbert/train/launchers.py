"""The traces that launchers leave in the environment. Imports nothing that takes time: the command line needs them."""

from collections.abc import Mapping

# (rank, world size, rank on this node, ranks on this node) as each launcher names them. Slurm sets some of its own in
# sbatch's and salloc's shells, too, where nobody else runs: SLURM_STEP_NUM_TASKS, unlike SLURM_NTASKS, counts who does.
LAUNCHER_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process, one rank or many, and so ends when its work is to end."""
    under_srun = "SLURM_STEP_ID" in environment
    return any(rank in environment and (under_srun or rank != "SLURM_PROCID") for rank, *_ in LAUNCHER_VARIABLES)
