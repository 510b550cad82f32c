"""A command as a shell runs it, in an environment beside ours, and the locales that people have."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCALES: dict[str, dict[str, str]] = {
    "C": {"LC_ALL": "C"},
    "POSIX, ASCII": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    **{name: {"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "gbk", "latin-1", "utf-16")},
}


def run(*words: str | bytes, shell: str = "{}", environment: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Run a command as a shell does, in an environment beside ours; return its code and all that it said.

    shell: the line in which {} is the command.
    """
    command = [sys.executable, "-m", "cmbert", *words]
    line = shell.replace("{}", '"$@"')
    found = subprocess.run(
        ["bash", "-c", line, "bash", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return found.returncode, found.stdout
