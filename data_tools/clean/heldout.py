"""The passes over held-out text, so that it and its near copies are kept out of what is trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.files.operations import doing
from data_tools.clean.duplicates.signatures import save_array
from data_tools.clean.setup import Item, Setup
from data_tools.clean.text.letters import HeldOutTexts, Sketch, sketch
from data_tools.input.readers import DocumentReader


def sketch_texts(item: Item) -> dict[str, Any]:
    """Write down how the held-out texts of a task are compared with others."""
    folder = item.setup.held_out_texts
    assert folder
    sketches = [sketch(document.text) for document in DocumentReader(item.ranges, has_options=False)]
    arrays = (
        np.array([one.key for one in sketches], np.uint64),
        np.cumsum([0, *(len(one.grams) for one in sketches)]),
        np.concatenate([np.zeros(0, np.uint64), *(one.grams for one in sketches)]),
    )
    for path, array in zip(_files(folder, item.rank), arrays, strict=True):
        save_array(path, array)
    return {"documents": len(sketches)}


def join_sketches(setup: Setup) -> dict[str, Any]:
    """The sketches of all tasks -> what texts are looked up in, in the same folder."""
    folder = setup.held_out_texts
    assert folder
    HeldOutTexts.write(folder, _sketches(folder))
    return {}


def _files(folder: Path, rank: int) -> list[Path]:
    return [folder / f"{rank:05d}.{name}.npy" for name in ("keys", "bounds", "grams")]


def _sketches(folder: Path) -> Iterator[Sketch]:
    for path in sorted(folder.glob("*.keys.npy")):
        with doing("read", path):
            keys, bounds, grams = map(np.load, _files(folder, int(path.name.split(".")[0])))
        yield from (Sketch(key, own) for key, own in zip(keys.tolist(), np.split(grams, bounds[1:-1]), strict=False))
