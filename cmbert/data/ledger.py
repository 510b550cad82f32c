"""The ledger: which segments of which documents every step saw, appended as it trains and rewound with the checkpoint.

ledger/000000000.bin, 000001000.bin, ... hold the records of STEPS_PER_FILE steps each. A record is a header and the
segments of the whole step, over all ranks, ordered by document and deflated: a few bytes a segment.
"""

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cmbert.errors import CheckpointError
from cmbert.files.operations import doing, file_size
from cmbert.files.patient import PatientFile
from cmbert.files.whole import keep_beginning

LEDGER_FOLDER = "ledger"
STEPS_PER_FILE = 1_000
SEGMENT_BYTES = 1 + 8 + 4 + 4  # source, document, start, length; the source takes 2 in a step with a number over 255
MOST_ROWS = 2**53  # more than any run has; numbers of rows are signed 64-bit
HEADER = struct.Struct("<QQIII")  # step, number of its first row in the data, segments, bytes that follow, their CRC-32


logger = logging.getLogger(__name__)


class Segments(NamedTuple):
    """Segments of documents, ordered by source, document and start; all of shape (segments,)."""

    sources: np.ndarray  # uint16, number of the source in the recipe
    documents: np.ndarray  # int64, number of the document in its shard set
    starts: np.ndarray  # int32, tokens
    lengths: np.ndarray  # int32, tokens


class StepRecord(NamedTuple):
    """What one step saw."""

    step: int
    first_row: int
    """Number of its first row in the data; skipped rows count."""
    segments: Segments


def pack_record(step: int, first_row: int, segments: Segments) -> bytes:
    """Return the bytes of a record."""
    documents = np.diff(segments.documents, prepend=0).astype("<i8")
    numbers = segments.sources.astype("u1" if not len(segments.sources) or segments.sources.max() < 256 else "<u2")
    columns = (numbers, documents, segments.starts.astype("<i4"), segments.lengths.astype("<i4"))
    # Byte by byte: the high bytes of a column are nearly all zero and cost nothing side by side.
    planes = [column.view(np.uint8).reshape(len(column), -1).T.tobytes() for column in columns]
    body = zlib.compress(b"".join(planes), level=6)
    return HEADER.pack(step, first_row, len(segments.sources), len(body), zlib.crc32(body)) + body


def _unpack(header: tuple[int, int, int, int, int], body: bytes, path: Path) -> StepRecord:
    step, first_row, count, _, checksum = header
    if zlib.crc32(body) != checksum:
        raise CheckpointError(f"{path}: the record of step {step} is damaged; later ones may be sound")
    raw, columns, place = zlib.decompress(body), [], 0
    is_narrow = len(raw) == count * SEGMENT_BYTES  # the usual: fewer than 257 sources
    if len(raw) not in (count * SEGMENT_BYTES, count * (SEGMENT_BYTES + 1)) or first_row > MOST_ROWS:
        raise CheckpointError(f"{path}: the header of step {step}'s record is damaged; later ones may be sound")
    for dtype in ("u1" if is_narrow else "<u2", "<i8", "<i4", "<i4"):
        size = count * np.dtype(dtype).itemsize
        planes = np.frombuffer(raw, np.uint8, size, place).reshape(-1, count)
        columns.append(np.ascontiguousarray(planes.T).view(dtype).reshape(count))
        place += size
    sources, documents, starts, lengths = columns
    return StepRecord(step, first_row, Segments(sources.astype(np.uint16), np.cumsum(documents), starts, lengths))


class LedgerWriter:
    """Append records. Only rank 0 has one."""

    def __init__(self, run: Path, first_step: int, may_open: Callable[[], object] = lambda: None, begin: int = 0):
        """Forget the records from `first_step` on, which an earlier life of the run has written.

        may_open: called before another file is begun; raises if the run is no longer ours. begin: the run's first step.
        """
        self.folder, self.may_open = run / LEDGER_FOLDER, may_open
        with doing("create", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        current = _file_of(self.folder, first_step)
        with doing("list", self.folder):
            names = os.listdir(self.folder)  # a glob would pass over what it may not read
        for path in (self.folder / name for name in names if name.endswith(".bin")):
            if path > current:
                with doing("remove", path):
                    path.unlink()
        if file_size(current) is not None:
            with doing("open", current):
                file = open(current, "rb")
            with doing("read", current), file:
                end, last = _end_of(file, first_step)
            reached = max(first_step - first_step % STEPS_PER_FILE, begin) - 1 if last is None else last
            if reached < first_step - 1:
                logger.warning(
                    "%s: damaged: its records of steps %d to %d are lost", current, reached + 1, first_step - 1
                )
            keep_beginning(current, end)  # another file: an earlier life that still runs keeps the old one
        self.files = [PatientFile(current)]
        """The one that grows is the last; those before it are closed once they are on disk."""

    def write(self, step: int, record: bytes) -> None:
        """Append the record of `step`."""
        path = _file_of(self.folder, step)
        if path != self.files[-1].path:
            self.may_open()
            self.files.append(PatientFile(path))
        self.files[-1].write(record)

    def sync(self) -> None:
        """Put what was written on disk; before a checkpoint that relies on it. Raises OSError on a full disk."""
        for file in self.files:
            file.sync()
        for file in self.files[:-1]:
            file.close()
        del self.files[:-1]

    def close(self) -> None:
        """Put everything on disk. Raises OSError on a full disk, having closed every file."""
        with contextlib.ExitStack() as closing:
            for file in self.files:
                closing.callback(file.close)


def _file_of(folder: Path, step: int) -> Path:
    return folder / f"{step - step % STEPS_PER_FILE:09d}.bin"


def _headers(file: BinaryIO) -> Iterator[tuple[int, tuple[int, int, int, int, int]]]:
    """Yield (where its body begins, header) of every whole record."""
    size = os.fstat(file.fileno()).st_size
    place = 0
    while place + HEADER.size <= size:
        file.seek(place)
        header = HEADER.unpack(file.read(HEADER.size))
        is_record = header[3] > 0  # else the zeros that a file system leaves where a lost machine had not written yet
        if not is_record or place + HEADER.size + header[3] > size:
            return
        yield place + HEADER.size, header
        place += HEADER.size + header[3]


def _end_of(file: BinaryIO, step: int) -> tuple[int, int | None]:
    """Return where the records before `step` end, and the step of the last; one cut short by a kill is left out."""
    end, last = 0, None
    for body, header in _headers(file):
        if header[0] >= step:
            break
        end, last = body + header[3], header[0]
    return end, last


def read_record(run: Path, step: int) -> StepRecord:
    """Return what `step` saw. Raises CheckpointError when the run has no record of it, or a damaged one."""
    path = _file_of(run / LEDGER_FOLDER, step)
    if path.is_file():
        with open(path, "rb") as file:
            for body, header in _headers(file):
                if header[0] == step:
                    file.seek(body)
                    return _unpack(header, file.read(header[3]), path)
    raise CheckpointError(f"{path}: no record of step {step}; the run has not come so far, or its ledger was removed")
