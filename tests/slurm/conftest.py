"""A private Slurm for all tests here of one process, a desk for each, and shellcheck; installed where they can be."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import require_commands
from tests.integration.launching import settings, trace, train
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


@pytest.fixture(scope="session")
def known_trace() -> list[dict]:
    """Filled by `unbroken`."""
    return []


@pytest.fixture
def unbroken(recipe_file: Path, tmp_path: Path, known_trace: list[dict]) -> list[dict]:
    """The trace of the recipe on two ranks that nothing happened to, without Slurm; trained once."""
    if not known_trace:
        directory = tmp_path / "unbroken"
        train(recipe_file, *settings(f"run_directory={directory}"), ranks=2)
        known_trace += trace(directory)
    return known_trace
