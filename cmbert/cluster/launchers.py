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


def variables_in(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the row of LAUNCHER_VARIABLES that counts, None if no launcher has left its rank and world size.

    In a Slurm step of several tasks Slurm's own count: what names fewer ranks than there are tasks was inherited from
    the shell that called srun, and PMI-2 names as many but no local rank. Only a launcher that each task starts names
    more, or as many if it is torchrun with one rank a node.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "") if "SLURM_STEP_ID" in environment else ""
    least = int(tasks) if tasks.isdigit() and int(tasks) > 1 else 0
    for row in LAUNCHER_VARIABLES:
        rank, size, *_ = row
        if rank not in environment or size not in environment:
            continue
        if rank == "SLURM_PROCID" or not environment[size].isdigit():  # what is no number is to be named
            return row
        if int(environment[size]) + ("TORCHELASTIC_RUN_ID" in environment) > least:
            return row
    return None


def is_launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process, one rank or many, and so ends when its work is to end."""
    under_srun = "SLURM_STEP_ID" in environment
    return any(rank in environment and (under_srun or rank != "SLURM_PROCID") for rank, *_ in LAUNCHER_VARIABLES)


def launched_by(environment: Mapping[str, str]) -> str | None:
    """Return the variable by which a launcher of ranks, or a Slurm step of several tasks, has started this process."""
    for rank, size, *_ in LAUNCHER_VARIABLES:
        if rank in environment and (rank != "SLURM_PROCID" or environment.get(size, "1") != "1"):
            return rank
    return None
