"""Programs of Debian that some tests drive: there, or installed where they can be."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def require_commands(packages: dict[str, str]) -> None:
    """Have commands (command: Debian's package) installed; see `install`."""
    install(*(package for command, package in packages.items() if shutil.which(command) is None))


def install(*missing: str) -> None:
    """Install packages as root on Debian; else skip the test. In CI not being able to is a failure."""
    if not missing:
        return
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        give_up(f"{', '.join(missing)} not installed, and only root on Debian installs them here")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(Path(tempfile.gettempdir()) / "cmbert-tests-apt.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt-get does not wait for the one of another worker: it fails
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                give_up(f"apt-get {' '.join(command)}: {done.stderr.strip()[-300:]}")
