"""Arrays in .npz files that our own programs wrote: read whole and proved, or refused in one line."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from cmbert.errors import CmbertError
from cmbert.files.operations import read_input

DAMAGED: tuple[type[Exception], ...] = (  # what zipfile and numpy's header make of other bytes
    ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    SyntaxError, TypeError, OverflowError,
)  # fmt: skip


def read_arrays(
    path: Path, wanted: Mapping[str, np.dtype | type], *, error: type[CmbertError], remedy: str
) -> dict[str, np.ndarray] | None:
    """Return the arrays of an uncompressed .npz, each of one dimension and of the type that `wanted` says, by name.

    None if there is no file. Nothing is allocated that the file itself has not. Raises `error`, one line that ends in
    `remedy`, for anything else.
    """
    raw = read_input(path)
    if raw is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return {name: _read_array(archive, f"{name}.npy", np.dtype(dtype)) for name, dtype in wanted.items()}
    except DAMAGED as fault:
        raise error(f"{path}: damaged: it does not hold the arrays {', '.join(wanted)}; {remedy}") from fault


def _read_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype) -> np.ndarray:
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed")
    contents = archive.read(member)  # proves its CRC-32
    file = io.BytesIO(contents)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("another version")
    shape, _, found = npy.read_array_header_1_0(file)
    rest = contents[file.tell() :]
    if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != len(rest):
        raise ValueError("another array")
    return np.frombuffer(rest, dtype)
