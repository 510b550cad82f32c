"""A private Slurm for all tests here of one process, a desk for each, and shellcheck; installed where they can be."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debian import require_commands
from tests.integration.launching import trace
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk

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


@pytest.fixture
def desk(slurm: Cluster, tmp_path: Path, recipe_file: Path) -> Iterator[Desk]:
    """A desk with a recipe, on a cluster that has nothing else to do."""
    yield Desk(slurm, tmp_path)
    slurm.clear()


@pytest.fixture
def unbroken(recipe_file: Path, reference: Callable[..., Path]) -> list[dict]:
    """The trace of the recipe on two ranks that nothing happened to, without Slurm."""
    return trace(reference(recipe_file, ranks=2))
