"""Groups of duplicates from pairs, by a union-find in whose memory the pairs never are: five bytes a document.

Every document points to one before it, or to itself, so that the root of a group is its first document whatever the
order of the pairs. (Union by size or rank needs four bytes more, halving the paths alone is as fast in practice:
Patwary, Blair and Manne, "Experiments on Union-Find Algorithms", SEA 2010.)
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmbert.errors import InputError
from cmbert.machine.compiled import compiled

PAIRS_READ = 1 << 20  # at a time, 8 MB
NUMBER = np.dtype("<u4")
BYTES_PER_DOCUMENT = NUMBER.itemsize + 1  # in memory


@compiled
def _root(parents: np.ndarray, document: int) -> int:
    """First document of a group; on the way every other step is cut short."""
    while parents[document] != document:
        parents[document] = parents[parents[document]]
        document = parents[document]
    return document


@compiled
def _join(parents: np.ndarray, pairs: np.ndarray) -> None:
    for index in range(len(pairs)):
        one, other = _root(parents, pairs[index, 0]), _root(parents, pairs[index, 1])
        if one < other:
            parents[other] = one
        elif other < one:
            parents[one] = other


@compiled
def _settle(parents: np.ndarray) -> None:
    """Let every document point to its root: whom it points to comes before it and does so already."""
    for document in range(len(parents)):
        parents[document] = parents[parents[document]]


def find_groups(pairs: Iterable[tuple[Path, bool]], documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each document's root, shape (documents + 1,), uint32, and whether it equals one before it, bool.

    pairs: files of pairs of documents that are alike, numbered from 1 to `documents` (0: all that was cleaned before),
    and whether their texts are equal: then the second of a pair is a copy.
    """
    roots, copies = np.arange(documents + 1, dtype=NUMBER), np.zeros(documents + 1, bool)
    for path, are_equal in pairs:
        for block in read_pairs(path, documents):
            _join(roots, block)
            if are_equal:
                copies[block[:, 1]] = True
    _settle(roots)
    return roots, copies


def read_pairs(path: Path, documents: int) -> Iterable[np.ndarray]:
    """Yield the pairs of a file in blocks, shape (pairs, 2), uint32. Raises InputError for a damaged one."""
    try:
        array = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); remove it, and the same command makes it again") from error
    for first in range(0, len(array), PAIRS_READ):
        block = np.array(array[first : first + PAIRS_READ])
        if block.max(initial=0) > documents:
            raise InputError(f"{path}: damaged: it names document {block.max():,} of {documents:,}")
        yield block
