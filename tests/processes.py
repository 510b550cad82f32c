"""Which processes a run has below it, and whether any is left of them."""

import time
from pathlib import Path
from typing import NamedTuple

SERVER, TRACKER = "multiprocessing.forkserver", "multiprocessing.resource_tracker"  # in their command lines


class Process(NamedTuple):
    """One process for good: a pid may be given again."""

    pid: int
    started: int
    """In clock ticks since the machine started."""
    command: str


def find(pid: int) -> tuple[Process, int] | None:
    """Return a process that lives, and its parent's pid. A zombie has ended: who should ask for its code is another."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if status[0] in "ZX" else (Process(pid, int(status[19]), command), int(status[1]))


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie, which its parent has not reaped yet, does not."""
    return find(pid) is not None


def descendants(pid: int) -> list[Process]:
    """Return all processes below one that live, parents first."""
    below: dict[int, list[Process]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if found := find(int(path.name)):
            below.setdefault(found[1], []).append(found[0])
    seen: list[Process] = []
    parents = [pid]
    while parents:
        children = below.get(parents.pop(), [])
        seen += children
        parents += [child.pid for child in children]
    return seen


def left_of(processes: list[Process], seconds: float) -> list[Process]:
    """Return those that still live after so long; none, as soon as none does."""
    deadline = time.monotonic() + seconds
    while (alive := [one for one in processes if (found := find(one.pid)) and found[0] == one]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return alive


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def fork_servers(processes: list[Process]) -> list[Process]:
    """Return the servers that loader processes are forked from."""
    return [one for one in processes if SERVER in one.command and find_parent(one) not in _pids(processes, SERVER)]


def loaders(processes: list[Process]) -> list[Process]:
    """Return the loader processes: what a server forks has its command line."""
    return [one for one in processes if SERVER in one.command and find_parent(one) in _pids(processes, SERVER)]


def resource_trackers(processes: list[Process]) -> list[Process]:
    return [one for one in processes if TRACKER in one.command]


def find_parent(process: Process) -> int | None:
    found = find(process.pid)
    return found[1] if found else None


def _pids(processes: list[Process], text: str) -> set[int]:
    return {one.pid for one in processes if text in one.command}
