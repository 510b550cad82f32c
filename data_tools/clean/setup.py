"""What every task of one call of `clean` is told, and where it finds and puts what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmbert.files.reading import read_json
from data_tools.clean.config import CleanConfig
from data_tools.clean.duplicates.signatures import FILE
from data_tools.clean.texts import TABLE_FILE, TEXT_FILE
from data_tools.input.readers import ByteRange

HELD_OUT_TEXTS, EVALUATION_TEXTS = "held out texts", "evaluation texts"
JOIN_EVALUATION = "join evaluation texts"  # a pass
PUBLISHING = "publishing"  # once all is made: from here on some of it may have been renamed


@dataclass(frozen=True)
class Setup:
    """One call."""

    work: Path
    """Folder of all that is removed at the end."""
    config: CleanConfig
    texts: Path
    """Folder to write the texts that stay to."""
    heldout: Path | None = None
    """Folder to set the held-out share of them aside in."""
    signatures: Path | None = None
    """Folder to write the signatures of what stays to."""
    only_heldout: bool = False
    """The held-out share alone is written."""
    held_out_texts: Path | None = None
    """Folder of texts that nothing may be near to."""
    evaluation_texts: Path | None = None
    """Folder of texts that nothing may hold."""
    earlier: tuple[Path, ...] = ()
    """Signature files of what was cleaned before."""

    def text_file(self, rank: int) -> Path:
        """Return where a task's texts lie between the passes."""
        return self.work / "texts" / TEXT_FILE.format(rank)

    def table_file(self, rank: int) -> Path:
        """Return where the table of them lies."""
        return self.work / "texts" / TABLE_FILE.format(rank)

    def signature_file(self, rank: int) -> Path:
        """Return where their signatures lie."""
        return self.work / "signatures" / FILE.format(rank)

    @property
    def is_publishing(self) -> bool:
        """Whether all is made, and some of it may have been renamed."""
        return (self.work / PUBLISHING).exists()

    def folders(self) -> list[Path]:
        """Return all folders that tasks write to."""
        inside = [
            self.work / name for name in ("texts", "signatures", "pairs", "cluster", HELD_OUT_TEXTS, EVALUATION_TEXTS)
        ]
        return [*inside, self.texts, *(path for path in (self.heldout, self.signatures) if path)]


class Item(NamedTuple):
    """A task of a pass that works on input."""

    setup: Setup
    rank: int
    ranges: Sequence[ByteRange] = ()


class Groups(NamedTuple):
    """What `cluster` found: the documents before each task's, the roots, which are copies; mapped, not read."""

    offsets: np.ndarray
    roots: np.ndarray
    copies: np.ndarray

    @classmethod
    def of(cls, work: Path) -> "Groups":
        """Return what is under `work`."""
        return cls(*(np.load(work / "cluster" / f"{name}.npy", mmap_mode="r") for name in cls._fields))


def marker_file(work: Path, name: str, rank: int) -> Path:
    """Return where the record of a task lies that is done."""
    return work / f"done {name}" / f"{rank:05d}.json"


def read_marker(work: Path, name: str, rank: int) -> dict[str, Any]:
    """Return the record of a task that is done."""
    found: dict[str, Any] = read_json(marker_file(work, name, rank))
    return found
