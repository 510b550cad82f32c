"""Which documents have a key in common: a task for a band and a range of its cells, each in bounded memory."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.clean.duplicates.signatures import CELLS, ENTRY, WHOLE_TEXT, read_cells, save_array

MOST_ENTRIES = 1 << 25  # of a task; at some 36 bytes each while they are ordered 1.2 GB
EARLIER = 0  # number of whatever was cleaned before; the documents of this call begin at 1
EDGE = np.dtype("<u4")
EDGES_FILE = "{band:03d}-{first:03d}.npy"


class Comparison(NamedTuple):
    """A task: cells [first, last) of one band."""

    band: int
    first: int
    last: int

    @property
    def file(self) -> str:
        """Name of what the task writes."""
        return EDGES_FILE.format(band=self.band, first=self.first)


def plan_comparisons(documents: int, bands: Sequence[int]) -> list[Comparison]:
    """Return the tasks that compare so many documents, those cleaned before among them."""
    parts = min(-(-documents // MOST_ENTRIES) or 1, CELLS)
    bounds = [CELLS * part // parts for part in range(parts + 1)]
    return [Comparison(band, *pair) for band in bands for pair in pairwise(bounds)]


def compare(files: Sequence[Path], offsets: np.ndarray, earlier: Sequence[Path], task: Comparison, folder: Path) -> int:
    """Write the pairs of documents with equal keys, the first of them and each other one, shape (pairs, 2), EDGE.

    files: signatures of this call's documents, which are numbered from 1 on; offsets: documents before each file.
    earlier: signatures of what was cleaned before; all of it has the number EARLIER. Returns the number of pairs.
    """
    found = [read_cells(path, task.band, task.first, task.last) for path in (*earlier, *files)]
    sizes = [len(entries) for entries in found]
    keys = np.concatenate([np.zeros(0, "<u8"), *(entries["key"] for entries in found)])
    documents = np.concatenate([np.zeros(0, EDGE), *(entries["document"] for entries in found)])
    del found
    before = sum(sizes[: len(earlier)])
    documents[:before] = EARLIER
    documents[before:] += np.repeat((offsets[:-1] + 1).astype(EDGE), sizes[len(earlier) :])
    save_array(folder / task.file, pairs_of(keys, documents))
    return len(keys)


def pairs_of(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the pairs of documents with equal keys, shape (pairs, 2): the first of a run of them with each other one.

    documents: their numbers, shape (entries,), of those with one key in ascending order.
    """
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    is_other = np.zeros(len(keys), bool)
    is_other[1:] = keys[1:] == keys[:-1]
    del keys, order
    firsts = np.flatnonzero(~is_other)
    others = np.flatnonzero(is_other)
    first = firsts[np.searchsorted(firsts, others) - 1] if len(others) else others
    pairs = np.stack([documents[first], documents[others]], axis=1)
    return pairs[pairs[:, 1] != EARLIER]


def bands_to_compare(exact: bool, num_bands: int) -> list[int]:
    """Return the bands that count: that of whole texts only where equal texts are looked for."""
    return list(range(WHOLE_TEXT if exact else WHOLE_TEXT + 1, num_bands))


BYTES_PER_ENTRY = ENTRY.itemsize
