"""The search for duplicates at a large corpus's size, without its text: seconds, memory and disk of drawn signatures.

    python recipes/large/duplicates.py --documents 20000000

Every fifth document is drawn as a near copy of another: it shares half of its bands. The groups that are found are
checked against those that were drawn.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.errors import run_command
from data_tools.clean.config import DuplicatesConfig
from data_tools.clean.duplicates.bands import EDGE, bands_to_compare, compare, plan_comparisons
from data_tools.clean.duplicates.clusters import find_groups
from data_tools.clean.duplicates.signatures import num_bands, offsets_of, write_signatures

FILE_DOCUMENTS = 75_000  # of a task of 256 MB
COPIES = 5  # every fifth document is a copy
TOTAL = 1_650_000_000  # documents of the recipe's corpora
BANDS = num_bands(DuplicatesConfig())


def draw_files(folder: Path, documents: int) -> None:
    """Write signature files. A copy is of any document before it that is none itself."""
    for number, first in enumerate(range(0, documents, FILE_DOCUMENTS)):
        count = min(FILE_DOCUMENTS, documents - first)
        own = np.arange(first, first + count)
        copies = own[(own % COPIES == 0) & (own > 0)]
        originals = np.random.default_rng(number).integers(0, copies)
        originals += originals % COPIES == 0  # the next one is no copy
        keys = keys_of(own)
        shared = np.arange(1, BANDS, 2)
        keys[copies[:, None] - first, shared] = keys_of(originals)[:, shared]
        write_signatures(folder / f"{number:05d}.signatures", keys)
        np.save(folder / f"{number:05d}.drawn.npy", np.stack([copies, originals], axis=1))


def keys_of(documents: np.ndarray) -> np.ndarray:
    """Return keys that no other document has, shape (documents, BANDS), uint64, by SplitMix64 (OOPSLA 2014)."""
    keys = (documents[:, None] * BANDS + np.arange(1, BANDS + 1)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def compare_all(folder: Path) -> dict[str, Any]:
    """Compare the bands of all files, one task after the other."""
    files = sorted(folder.glob("*.signatures"))
    offsets = offsets_of(files)
    tasks = plan_comparisons(int(offsets[-1]), bands_to_compare(True, BANDS))
    entries = sum(compare(files, offsets, [], task, folder) for task in tasks)
    pairs = sum((folder / task.file).stat().st_size // (2 * EDGE.itemsize) for task in tasks)
    return {"tasks": len(tasks), "entries": entries, "pairs": pairs}


def group_all(folder: Path) -> dict[str, Any]:
    """Find the groups, and check them."""
    offsets = offsets_of(sorted(folder.glob("*.signatures")))
    files = sorted(folder.glob("[0-9][0-9][0-9]-*.npy"))
    roots, copies = find_groups(((path, path.name.startswith("000-")) for path in files), int(offsets[-1]))
    largest = largest_bytes()  # of the search, without the check that follows
    is_copy = np.zeros(len(roots), bool)
    for path in folder.glob("*.drawn.npy"):
        drawn = np.load(path) + 1
        assert (roots[drawn[:, 0]] == roots[drawn[:, 1]]).all(), "a copy is not in its original's group"
        is_copy[drawn[:, 0]] = True
    groups = int(np.count_nonzero(roots[1:] == np.arange(1, len(roots))))
    assert groups == len(roots) - 1 - np.count_nonzero(is_copy), "some that are no copies are in one group"
    return {"groups": groups, "equal": int(np.count_nonzero(copies)), "largest": largest}


def measured(step: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run a step in a process of its own; return what it returns with its seconds and largest resident set."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (step, folder))


def _measure(step: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    before = largest_bytes()
    started = time.monotonic()
    found = step(folder)
    seconds = time.monotonic() - started
    return {"largest": largest_bytes(), **found, "seconds": seconds, "before": before}


def largest_bytes() -> int:
    """Return the largest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rehearse(documents: int) -> None:
    """Draw, compare, group; print a line each."""
    with tempfile.TemporaryDirectory(prefix="cmbert-duplicates-") as name:
        folder = Path(name)
        draw_files(folder, documents)
        disk = sum(path.stat().st_size for path in folder.glob("*.signatures"))
        print(f"{documents:,} documents, {disk / documents:.1f} bytes of signatures each, {disk / 1e9:.2f} GB")
        found = measured(compare_all, folder)
        rate = found["entries"] / found["seconds"] / 1e6
        print(
            f"compare: {found['tasks']} tasks, {found['pairs']:,} pairs, {found['seconds']:.1f} s "
            f"({rate:.2f}M keys/s), {found['largest'] / 1e9:.2f} GB of memory at most"
        )
        print(f"  {TOTAL:,}: {TOTAL * BANDS / rate / 3.6e9:.1f} core-hours")
        found = measured(group_all, folder)
        own = (found["largest"] - found["before"]) / documents
        print(
            f"cluster: {found['groups']:,} groups, as drawn, {found['seconds']:.1f} s, {found['largest'] / 1e9:.2f} GB "
            f"of memory at most, {found['before'] / 1e9:.2f} of them before: {own:.1f} bytes a document"
        )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000_000, metavar="N", help="default 20 million")
    options = parser.parse_args()
    return run_command("duplicates", lambda: rehearse(options.documents))


if __name__ == "__main__":
    sys.exit(main())
