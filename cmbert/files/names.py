"""Names of files: where they lead, and which no system or torch opens."""

import os
from pathlib import Path

NAME_BYTES = 255  # of a file or folder, on every file system of Linux


def real(path: Path) -> Path:
    """Return where a path leads. A link to itself raises nothing here, unlike in Path.resolve: opening it does."""
    return Path(os.path.realpath(path))


def fault_of_name(name: str) -> str:
    """Return what keeps torch, or the system, from opening a file of this name, and the remedy; "" if nothing does."""
    if "\0" in name:
        return f"{name!r} has a NUL character in it; take it out"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"{name!r} is not UTF-8, and PyTorch opens no such file; rename it"
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    return f"has a name of {longest} bytes in it, and files have {NAME_BYTES} at most; shorten it" * (
        longest > NAME_BYTES
    )
