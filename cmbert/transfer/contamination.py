"""What a model was fine-tuned on, kept beside its weights, so that no test is scored that it has seen.

`training_data.json` lists the files, `training_sentences.npy` holds a hash of every sentence. numpy and stdlib only.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmbert.errors import CheckpointError, InputError
from cmbert.files.folders import aside_path
from cmbert.files.operations import fsync_path
from cmbert.files.reading import read_json
from cmbert.files.whole import write_json

DATA_FILE = "training_data.json"
SENTENCES_FILE = "training_sentences.npy"
SENTENCE_HASH_BYTES = 8  # ten million sentences collide with a foreign one at odds of 1 in 10^12


@dataclass(frozen=True)
class TrainingFile:
    """One file that a model was trained on."""

    path: str
    """Its name, without folders."""
    source: str
    """simclue | t2ranking | other."""
    pairs: int
    """Pairs, triplets or graded pairs of it that were trained on."""
    blake2b: str
    """BLAKE2b-256 of the file, hex."""


def sentence_hashes(texts: Iterable[str]) -> np.ndarray:
    """Return the sorted, unique hashes of the stripped texts, shape (sentences,), uint64."""
    digests = {hashlib.blake2b(text.strip().encode(), digest_size=SENTENCE_HASH_BYTES).digest() for text in texts}
    return np.sort(np.frombuffer(b"".join(digests), dtype="<u8"))


def read_training_data(folder: Path) -> list[TrainingFile]:
    """Return what `cmbert embed-train` recorded in a model folder; an empty list for a model that it did not train.

    Raises CheckpointError if the record is damaged.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        return []
    kinds = {field.name: int if field.name == "pairs" else str for field in dataclasses.fields(TrainingFile)}
    try:
        entries = read_json(path)
    except InputError as error:
        raise CheckpointError(f"{error}; train the model again") from error
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != kinds:
            raise CheckpointError(f"{path}: not a record of `cmbert embed-train`; train the model again")
    return [TrainingFile(**entry) for entry in entries]


def read_training_sentences(folder: Path) -> np.ndarray:
    """Return the hashes of the sentences a model was trained on, shape (sentences,), uint64, sorted; often empty.

    Raises CheckpointError if the folder names training files but has no readable hashes.
    """
    if not (folder / DATA_FILE).is_file():
        return np.empty(0, dtype=np.uint64)
    path = folder / SENTENCES_FILE
    try:
        hashes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: missing or damaged beside {DATA_FILE}; train the model again") from error
    if hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise CheckpointError(f"{path}: not a record of `cmbert embed-train`; train the model again")
    return hashes


def share_seen(folder: Path, texts: Sequence[str]) -> float:
    """Return the share of `texts`, 0 to 1, that the model in `folder` was fine-tuned on, up to outer white space."""
    seen = read_training_sentences(folder)
    if not len(seen) or not texts:
        return 0.0
    return share_of(seen, texts)


def share_of(seen: np.ndarray, texts: Sequence[str]) -> float:
    """Return the share of the unique `texts` whose hash is in `seen`, 0 to 1."""
    return float(np.isin(sentence_hashes(texts), seen).mean())


def merge_training_data(before: Sequence[TrainingFile], now: Sequence[TrainingFile]) -> list[TrainingFile]:
    """Return both, a file that is in both once, with the larger number of pairs."""
    merged: dict[tuple[str, str], TrainingFile] = {}
    for entry in (*before, *now):
        key = (entry.path, entry.blake2b)
        if key not in merged or merged[key].pairs < entry.pairs:
            merged[key] = entry
    return list(merged.values())


def write_training_data(folder: Path, files: Sequence[TrainingFile], hashes: np.ndarray) -> None:
    """Write the record into `folder`: the hashes first, so that a list of files without them is never ours."""
    aside = aside_path(folder / SENTENCES_FILE)
    with open(aside, "wb") as file:
        np.save(file, hashes)
    fsync_path(aside)
    aside.replace(folder / SENTENCES_FILE)
    write_json(folder / DATA_FILE, [dataclasses.asdict(entry) for entry in files])
