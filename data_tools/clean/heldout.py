"""The steps of `clean` that keep held-out text and its near copies out of what is trained on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.jsonl import JsonlWriter

from cmbert.files.whole import write_json
from data_tools.clean.steps import DropRecorder
from data_tools.clean.text.letters import HeldOutTexts, Sketch, canonical_letters, heldout_key, sketch


class OnlyHeldOut(BaseFilter):
    """Keep the held-out share alone."""

    name = "only held out"

    def __init__(self, share: float):
        super().__init__()
        self.bound = share * 2**64

    def filter(self, doc: Document) -> bool:
        """Return whether a text is held out."""
        return heldout_key(canonical_letters(doc.text)) < self.bound


class SetAside(PipelineStep):
    """Write the held-out share elsewhere. Chosen by the text alone: it is the same whatever else is cleaned."""

    name = "set aside"
    type = "writer"

    def __init__(self, writer: JsonlWriter, share: float, folder: Path):
        super().__init__()
        self.writer, self.bound, self.folder = writer, share * 2**64, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the other documents."""
        counts = Counter[str]()
        with self.writer as writer:
            for document in data:
                if heldout_key(canonical_letters(document.text)) < self.bound:
                    writer.write(document, rank)
                    counts[document.metadata["source"]] += 1
                else:
                    yield document
        if counts:
            write_json(self.folder / f"{rank:05d}.json", counts)


class KeepSketches(PipelineStep):
    """Write down how held-out texts are compared with others."""

    name = "sketch held-out text"
    type = "statistics"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the sketches of task `rank`."""
        sketches = [sketch(document.text) for document in data]
        np.savez(
            self.folder / f"{rank:05d}.npz",
            keys=np.array([one.key for one in sketches], np.uint64),
            bounds=np.cumsum([0, *(len(one.grams) for one in sketches)]),
            grams=np.concatenate([np.zeros(0, np.uint64), *(one.grams for one in sketches)]),
        )


class JoinSketches(PipelineStep):
    """The sketches of all tasks -> what `NotHeldOut` looks texts up in, in the same folder."""

    name = "join sketches"
    type = "statistics"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read and write."""
        HeldOutTexts.write(self.folder, self._sketches())

    def _sketches(self) -> Iterator[Sketch]:
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as arrays:
                keys, grams = arrays["keys"].tolist(), np.split(arrays["grams"], arrays["bounds"][1:-1])
            yield from (Sketch(key, own) for key, own in zip(keys, grams, strict=False))


class NotHeldOut(BaseFilter):
    """Drop texts that equal or nearly equal one of those in `folder`."""

    name = "not held out"

    def __init__(self, folder: Path, dropped: DropRecorder):
        super().__init__(dropped)
        self.folder = folder
        self._texts: HeldOutTexts | None = None

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Return (keep, reason)."""
        self._texts = self._texts or HeldOutTexts(self.folder)
        reason = self._texts.relation(doc.text)
        return reason is None, reason or ""
