"""One private Slurm for all tests here, and shellcheck; installed where they can be."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster

SLURM = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}  # Debian's packages


def require(packages: dict[str, str]) -> None:
    """Install what has not its command yet, as root on Debian; else skip the test. In CI that is a failure."""
    missing = [package for command, package in packages.items() if shutil.which(command) is None]
    if not missing:
        return
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        give_up(f"{', '.join(missing)} not installed, and only root on Debian installs them here")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            give_up(f"apt-get {' '.join(command)}: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """The command."""
    require({"shellcheck": "shellcheck"})
    return "shellcheck"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    require(SLURM)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
