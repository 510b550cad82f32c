"""What embedding training reads: the sets of pairs of one run, drawn by seed, and the record of where they are from."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmbert.errors import ConfigError
from cmbert.evaluate import t2ranking
from cmbert.evaluate.contamination import TrainingFile
from cmbert.evaluate.pairs import (
    Graded,
    Pair,
    read_inference,
    read_labelled,
    read_pairs,
    read_similarity,
)
from cmbert.files import hash_file
from cmbert.seeding import generator

logger = logging.getLogger(__name__)

Negatives = Literal["none", "given", "mined"]


@dataclass(frozen=True)
class DataPaths:
    """The files of one run."""

    pairs: tuple[Path, ...]
    """SimCLUE files or T2Ranking folders."""
    evaluation: Path
    similarity: tuple[Path, ...]
    inference: tuple[Path, ...]


@dataclass(frozen=True)
class TrainingData:
    """Everything a run trains on and is judged by; `pairs` are shuffled, so that its first N are those of size N."""

    pairs: list[Pair]
    origins: list[int]
    """Which of the run's files each pair is from: an index into `files`."""
    inference: list[Pair]
    similarity: list[Graded]
    evaluation: list[Graded]
    files: list[TrainingFile]
    """Each training file with all its pairs; `recorded` counts those of one size."""

    def recorded(self, num_pairs: int) -> list[TrainingFile]:
        """Return the files that a model of the first `num_pairs` pairs was trained on."""
        counts = Counter(self.origins[:num_pairs])
        num_origins = len(set(self.origins))
        files = []
        for index, file in enumerate(self.files):
            used = counts[index] if index < num_origins else file.pairs
            if used:
                files.append(TrainingFile(file.path, file.source, used, file.blake2b))
        return files


def hash_files(paths: DataPaths) -> dict[str, list[dict[str, str]]]:
    """Return name and BLAKE2b-256 of every file, by its role, for the settings of a run. Raises OSError, InputError."""
    roles = {"sts": paths.similarity, "nli": paths.inference, "eval": (paths.evaluation,), "pairs": paths.pairs}
    return {
        role: [{"path": path.name, "blake2b": _blake2b(path)} for given in given_paths for path in _expand(given)]
        for role, given_paths in roles.items()
    }


def _expand(path: Path) -> list[Path]:
    return t2ranking.files_of(path) if path.is_dir() else [path]


def _blake2b(path: Path) -> str:
    return hash_file(path)


def read_data(paths: DataPaths, *, sizes: Sequence[int], negatives: Negatives, seed: int) -> TrainingData:
    """Read all files; keep, after a shuffle by `seed`, as many pairs as the largest of `sizes` (none: all).

    Texts of T2Ranking that no kept pair needs are not kept. Equal pairs of several files count once, for the first.
    Raises InputError for a malformed file, ConfigError for a size above what there is.
    """
    evaluation = read_labelled(paths.evaluation)
    if len({row.grade for row in evaluation}) < 2:
        raise ConfigError(f"{paths.evaluation}: all labels are equal, so nothing correlates; give both 0 and 1")
    similarity = [row for path in paths.similarity for row in _say(path, read_similarity(path))]
    inference = [pair for path in paths.inference for pair in _say(path, read_inference(path).pairs)]
    found = _unique(paths.pairs)
    num_pairs = max(sizes, default=len(found))
    if num_pairs > len(found):
        raise ConfigError(f"{num_pairs:,} pairs asked for, but the files have {len(found):,} different ones; ask for less")
    order = generator(seed, "embedding pairs").permutation(len(found))[:num_pairs]
    chosen = [found[index] for index in order.tolist()]
    return TrainingData(
        pairs=_resolve(paths.pairs, chosen, negatives),
        origins=[origin for origin, _ in chosen],
        inference=inference,
        similarity=similarity,
        evaluation=evaluation,
        files=_record(paths, found, num_inference=0),
    )
