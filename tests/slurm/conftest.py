"""One private Slurm for all tests here, and shellcheck; installed where they can be."""

from collections.abc import Iterator

import pytest

from tests.debian import require_commands
from tests.slurm.cluster import Cluster

SLURM = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}  # Debian's packages


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """The command."""
    require_commands({"shellcheck": "shellcheck"})
    return "shellcheck"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    require_commands(SLURM)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
