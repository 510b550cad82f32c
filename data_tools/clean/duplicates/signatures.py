"""Signature files: of every document one key per band, so that documents with a key in common are duplicates.

Band 0 is the whole text's hash, the others are MinHash's. A file is made of one task's documents: the numbers of bands
and documents, where each band's cells begin, then 12 bytes per band and document, a key and the document's number in
the task, ordered by key. A cell is what has the same first byte in its key, so that one can be read by itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.errors import ConfigError, InputError
from cmbert.files.folders import aside_path, remove
from cmbert.files.json_types import read_record
from cmbert.files.operations import doing, fsync_path, rename
from cmbert.files.whole import write_bytes, write_json
from data_tools.clean.config import DuplicatesConfig

WHOLE_TEXT = 0  # the band of equal texts
CELLS = 256
CELL_SHIFT = np.uint64(56)
ENTRY = np.dtype([("key", "<u8"), ("document", "<u4")])
HEADER = np.dtype("<i8")
SET_FILE = "signatures.json"
FILE = "{:05d}.signatures"  # of a task
FORMAT = 1


def num_bands(config: DuplicatesConfig) -> int:
    """Return how many keys a document has."""
    return 1 + (config.num_buckets if config.near else 0)


def signature_bytes(config: DuplicatesConfig) -> int:
    """Return the bytes on disk per document."""
    return num_bands(config) * ENTRY.itemsize


def write_signatures(path: Path, keys: np.ndarray) -> None:
    """Write the keys of a task's documents, shape (documents, bands), uint64, whole or not at all."""
    documents, bands = keys.shape
    entries = np.empty((bands, documents), ENTRY)
    starts = np.zeros((bands, CELLS + 1), HEADER)
    for band in range(bands):
        order = np.argsort(keys[:, band], kind="stable")
        entries[band]["key"], entries[band]["document"] = keys[order, band], order
        cells = np.bincount((keys[:, band] >> CELL_SHIFT).astype(np.int64), minlength=CELLS)
        starts[band, 1:] = np.cumsum(cells)
    header = np.array([bands, documents], HEADER)
    write_bytes(path, header.tobytes() + starts.tobytes() + entries.tobytes())


def num_documents(path: Path) -> int:
    """Return how many documents a signature file holds. Raises InputError if it is torn."""
    with doing("open", path), open(path, "rb") as file:
        header = np.fromfile(file, HEADER, 2)
    bands, documents = header.tolist() if len(header) == 2 else (0, 0)
    if path.stat().st_size != _offset(bands, documents, bands, 0):
        raise InputError(f"{path}: damaged or truncated")
    return int(documents)


def read_cells(path: Path, band: int, first: int, last: int) -> np.ndarray:
    """Return the entries of cells [first, last) of a band, ordered by key, shape (entries,), ENTRY."""
    with doing("open", path), open(path, "rb") as file:
        bands, documents = np.fromfile(file, HEADER, 2).tolist()
        starts = np.fromfile(file, HEADER, CELLS + 1, offset=band * (CELLS + 1) * HEADER.itemsize)
        file.seek(_offset(bands, documents, band, int(starts[first])))
        count = int(starts[last] - starts[first])
        entries = np.fromfile(file, ENTRY, count)
    if len(entries) < count:
        raise InputError(f"{path}: damaged or truncated")
    return entries


def read_keys(path: Path) -> np.ndarray:
    """Return the keys of all documents of a file, in their order, shape (documents, bands), uint64."""
    with doing("open", path), open(path, "rb") as file:
        bands, documents = np.fromfile(file, HEADER, 2).tolist()
        file.seek(_offset(bands, documents, 0, 0))
        entries = np.fromfile(file, ENTRY).reshape(bands, documents)
    keys = np.empty((documents, bands), np.uint64)
    for band in range(bands):
        keys[entries[band]["document"], band] = entries[band]["key"]
    return keys


def _offset(bands: int, documents: int, band: int, entry: int) -> int:
    """Return where an entry of a band lies in a file."""
    return (2 + bands * (CELLS + 1)) * HEADER.itemsize + (band * documents + entry) * ENTRY.itemsize


def describe_bands(config: DuplicatesConfig) -> dict[str, Any]:
    """Return what two sets of signatures must have in common to be compared."""
    sizes = {name: getattr(config, name) for name in ("shingle_characters", "num_buckets", "hashes_per_bucket")}
    return {"format": FORMAT, **(sizes if config.near else {"num_buckets": 0})}


def seal_set(folder: Path, config: DuplicatesConfig, documents: int) -> None:
    """Make a folder of signature files a set that `--against` takes."""
    write_json(folder / SET_FILE, {**describe_bands(config), "documents": documents})


def is_set(folder: Path) -> bool:
    """Return whether a folder is a set of signatures."""
    return (folder / SET_FILE).is_file()


def files_of_set(folder: Path, config: DuplicatesConfig) -> list[Path]:
    """Return a set's files in order. Raises ConfigError if it was made with other numbers, InputError if some lack."""
    found = read_record(folder / SET_FILE, "documents")
    for name, value in describe_bands(config).items():
        if found.get(name) != value:
            raise ConfigError(
                f"--against {folder}: its signatures have {name} {found.get(name)}, this configuration has {value}; "
                "give both the same [duplicates]"
            )
    files = sorted(folder.glob("*.signatures"))
    if (there := sum(map(num_documents, files))) != found["documents"]:
        raise InputError(
            f"{folder}: holds signatures of {there:,} documents, its {SET_FILE} says {found['documents']:,}"
        )
    return files


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all, without a copy of it in memory."""
    aside = aside_path(path)
    try:
        with doing("write", path), open(aside, "wb") as file:
            np.save(file, array)
        fsync_path(aside)
        rename(aside, path)
    finally:
        remove(aside)


def offsets_of(files: Sequence[Path]) -> np.ndarray:
    """Return the number of the first document of each file, and of all, shape (files + 1,), int64.

    Raises ConfigError for more documents than there are numbers for.
    """
    offsets = np.cumsum([0, *map(num_documents, files)])
    if offsets[-1] >= np.iinfo(np.uint32).max:
        raise ConfigError(
            f"{offsets[-1]:,} documents are more than one call compares ({np.iinfo(np.uint32).max - 1:,}); clean parts "
            "one after the other, each with --signatures, and --against those of the ones before"
        )
    return offsets
