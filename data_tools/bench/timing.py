"""Two ways to do the same work, timed in turn; rows for the record."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

ROUNDS = 3
PACKAGES = ("numpy", "tokenizers", "jieba", "rjieba", "fastokens")
Row = dict[str, Any]


def beside(
    work: str,
    peer: tuple[str, int, Callable[[], object]],
    ours: tuple[int, Callable[[], object]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    packages: Sequence[str] = PACKAGES,
) -> Iterator[Row]:
    """Time both in turn and yield their rows."""
    name, peer_bytes, run_peer = peer
    our_bytes, run_ours = ours
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(ROUNDS):
        for who, run in (("peer", run_peer), ("ours", run_ours)):
            started = clock()
            run()
            seconds[who].append(clock() - started)
    theirs = peer_bytes / 1e6 / statistics.median(seconds["peer"])
    rate = our_bytes / 1e6 / statistics.median(seconds["ours"])
    common = {"rounds": ROUNDS, "where": where(packages)}
    yield {"work": work, "peer": name, "mb_per_second": round(theirs, 2), **common}
    yield {"work": work, "peer": "cmbert", "mb_per_second": round(rate, 2), "ratio": round(rate / theirs, 2), **common}


def where(packages: Sequence[str] = PACKAGES) -> str:
    """Return processor and versions, for the record."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if "model name" in line), "?"
    )
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"


def peak_megabytes(arguments: Sequence[str]) -> int:
    """Run a data_tools command in a process of its own; return the largest resident set it had, MB."""
    code = (  # VmHWM and not getrusage, whose maximum a child takes over from its parent
        "import re, sys\nfrom data_tools.cli import main\n"
        "if __name__ == '__main__':\n    code = main(sys.argv[1:])\n"
        "    print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "    sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1e3)
