"""One private Slurm for all tests here, installed when it can be."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_packages


def install_slurm() -> str:
    """Install what is missing, as root on Debian; return why that cannot be done, or nothing."""
    missing = missing_packages()
    if not missing:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{', '.join(missing)} not installed, and only root on Debian installs them here"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{' '.join(command)}: {done.stderr.strip()[-300:]}"
    return ""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running cluster of two nodes. Skips where Slurm cannot be had; in CI that is a failure."""
    problem = install_slurm()
    if problem:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    cluster = Cluster()
    yield cluster
    cluster.stop()
