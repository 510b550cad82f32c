"""What a run or a figure came about with: code, packages, hardware. Torch is imported only by what asks for it."""

import atexit
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cmbert.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def number_in(environment: Mapping[str, str], name: str) -> int:
    """Return a variable's whole number, 0 where it is not set or empty. Raises ConfigError for what is no number."""
    try:
        return int(environment.get(name) or 0)
    except ValueError:
        raise ConfigError(f"environment: {name}={environment[name]!r} is not a number; check the launcher") from None


class Environment(TypedDict, total=False):
    """What a run says of where it ran (environment.json)."""

    git_commit: str | None
    python: str
    platform: str
    versions: dict[str, str | None]


def make_room_for_modules() -> None:
    """Give transformers a temporary folder for the code of models where its own cannot be written (a read-only home).

    Must come before transformers is imported. What this process starts has the folder, too; it goes with the process.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    folder = Path(os.environ.get("HF_MODULES_CACHE") or os.path.join(home, "modules"))
    there = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if folder.is_absolute() and there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    scratch = tempfile.mkdtemp(prefix="cmbert-modules-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ["HF_MODULES_CACHE"] = scratch
    logger.info("%s cannot be written: transformers keeps the code of models in a temporary folder", folder)


def git_commit() -> str | None:
    """Return the commit of the clone that this code runs from; None for an installed copy, or without git."""
    if shutil.which("git") is None:
        return None
    place = Path(__file__)

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=place.parent, capture_output=True, text=True, check=False)

    if git("ls-files", "--error-unmatch", place.name).returncode != 0:
        return None  # not of the repository that it may lie in, for example with .venv
    return git("rev-parse", "HEAD").stdout.strip() or None


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package, None where it is not installed."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in packages}


def is_installed(module: str) -> bool:
    """Say whether `module` can be found, without importing it; a missing parent package counts as no."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def hardware(device: "torch.device") -> str:
    """Return the name of what computes."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def versions(device: "torch.device") -> dict[str, str]:
    """Return hardware and versions, which every figure needs beside it."""
    import torch

    return {"hardware": hardware(device), "torch": torch.__version__, "python": platform.python_version()}
