"""What embedding training reads: the pairs of one run, drawn by seed, and the record of where they are from."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmbert.errors import ConfigError, InputError
from cmbert.files.names import real
from cmbert.files.operations import hash_file
from cmbert.files.reading import lines_of
from cmbert.seeding import generator
from cmbert.transfer.contamination import TrainingFile
from cmbert.transfer.embedding import t2ranking
from cmbert.transfer.embedding.pairs import (
    Graded,
    Pair,
    PairFile,
    read_inference,
    read_labelled,
    read_pairs,
    read_similarity,
)

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

    def by_role(self) -> dict[str, list[Path]]:
        """Return every file that is read, a folder's own ones in its place, by the option that names it."""
        pairs = [file for path in self.pairs for file in (t2ranking.files_of(path) if path.is_dir() else [path])]
        return {"pairs": pairs, "eval": [self.evaluation], "sts": [*self.similarity], "nli": [*self.inference]}


@dataclass(frozen=True)
class TrainingData:
    """All that one run trains on and is judged by. `pairs` are shuffled: a smaller size has the first of them."""

    pairs: list[Pair]
    origins: list[int]
    """Where each pair is from: an index into `pair_files`."""
    pair_files: list[TrainingFile]
    """Files of pairs, with all they hold."""
    inference: list[Pair]
    similarity: list[Graded]
    other_files: list[TrainingFile]
    """Files of `inference` and `similarity`."""
    evaluation: list[Graded]

    def recorded(self, num_pairs: int) -> list[TrainingFile]:
        """Return the files that a model of the first `num_pairs` pairs is trained on, with the pairs it sees."""
        counts = Counter(self.origins[:num_pairs])
        used = [TrainingFile(f.path, f.source, counts[i], f.blake2b) for i, f in enumerate(self.pair_files)]
        return [file for file in used if file.pairs] + self.other_files

    def sentences(self, pairs: Iterable[Pair]) -> Iterator[str]:
        """Yield every text trained on beside and in `pairs`, repeated as often as it is there."""
        for pair in (*pairs, *self.inference):
            yield from (text for text in pair if text is not None)
        for row in self.similarity:
            yield from (row.first, row.second)


def hash_files(paths: DataPaths) -> dict[Path, str]:
    """Return the BLAKE2b-256 of every file of a run. Raises InputError if one is missing or empty."""
    files = [path for role in paths.by_role().values() for path in role]
    for path in files:
        next(lines_of(path))
    return {path: hash_file(path) for path in files}


def read_data(
    paths: DataPaths, hashes: Mapping[Path, str], *, sizes: Sequence[int], negatives: Negatives, seed: int
) -> TrainingData:
    """Read all files; keep, after a shuffle by `seed`, as many pairs as the largest of `sizes` (none given: all).

    A pair that is in several files counts once, for the first. Of T2Ranking only the texts of kept pairs are kept in
    memory. Without `negatives` "given" those of the files are dropped. Raises InputError for a malformed file and
    ConfigError for a size above what there is.
    """
    evaluation = read_labelled(paths.evaluation)
    if len({row.grade for row in evaluation}) < 2:
        raise InputError(f"{paths.evaluation}: all labels are equal, so nothing correlates; give a file with 0 and 1")
    similarity = {path: read_similarity(path) for path in paths.similarity}
    inference = {path: read_inference(path) for path in paths.inference}
    for path, file in inference.items():
        _say(path, file)
    found, pair_files = _unique_pairs(paths.pairs, hashes)
    num_pairs = max(sizes, default=len(found))
    if num_pairs > len(found):
        raise ConfigError(f"{num_pairs:,} pairs asked for, but the files have {len(found):,} different ones")
    order = generator(seed, "embedding pairs").permutation(len(found))[:num_pairs]
    chosen = [found[index] for index in order.tolist()]
    if num_pairs < len(found):
        logger.info("%s of %s pairs are trained on, drawn by seed %d", f"{num_pairs:,}", f"{len(found):,}", seed)
    pairs = _texts(paths.pairs, chosen, negatives)
    if negatives == "given":
        logger.info(
            "%s of %s pairs have a given hard negative", f"{sum(map(_has_negative, pairs)):,}", f"{len(pairs):,}"
        )
    counted = [(path, len(rows)) for path, rows in similarity.items()]
    counted += [(path, len(file.pairs)) for path, file in inference.items()]
    return TrainingData(
        pairs=pairs,
        origins=[origin for origin, _ in chosen],
        pair_files=pair_files,
        inference=[pair for file in inference.values() for pair in file.pairs],
        similarity=[row for rows in similarity.values() for row in rows],
        other_files=[TrainingFile(path.name, _source(path, False), count, hashes[path]) for path, count in counted],
        evaluation=evaluation,
    )


def _unique_pairs(
    paths: Sequence[Path], hashes: Mapping[Path, str]
) -> tuple[list[tuple[int, Pair | t2ranking.Reference]], list[TrainingFile]]:
    """Return the different pairs with the index of their file, T2Ranking's still as numbers, and the files."""
    found: list[tuple[int, Pair | t2ranking.Reference]] = []
    files, seen = [], set()
    for origin, path in enumerate(paths):
        if path.is_dir():
            references = t2ranking.read_references(path)
            found += [(origin, reference) for reference in references]
            judgements = t2ranking.files_of(path)[-1]
            entry = (f"{real(path).name}/{judgements.name}", "t2ranking", len(references), hashes[judgements])
        else:
            file = read_pairs(path)
            _say(path, file)
            fresh = [pair for pair in file.pairs if (pair.anchor, pair.positive) not in seen]
            if len(fresh) < len(file.pairs):
                again = len(file.pairs) - len(fresh)
                logger.info("%s: %s of them are in the files before it, and count once", path.name, f"{again:,}")
            seen |= {(pair.anchor, pair.positive) for pair in fresh}
            found += [(origin, pair) for pair in fresh]
            entry = (path.name, _source(path, file.is_triplets), len(fresh), hashes[path])
        files.append(TrainingFile(*entry))
    return found, files


def _texts(
    paths: Sequence[Path], chosen: Sequence[tuple[int, Pair | t2ranking.Reference]], negatives: Negatives
) -> list[Pair]:
    """Return `chosen` as texts, in order."""
    texts: dict[int, Iterator[Pair]] = {}
    for origin, path in enumerate(paths):
        references = [item for index, item in chosen if index == origin and isinstance(item, t2ranking.Reference)]
        if references:
            texts[origin] = iter(t2ranking.resolve(path, references, negatives=negatives == "given"))
    pairs = [item if isinstance(item, Pair) else next(texts[origin]) for origin, item in chosen]
    return pairs if negatives == "given" else [pair._replace(negative=None) for pair in pairs]


def _has_negative(pair: Pair) -> bool:
    return pair.negative is not None


def _source(path: Path, is_triplets: bool) -> str:
    """Return "simclue" for its own format or a path that says so: too wide a net is the safe side of a leak."""
    return "simclue" if is_triplets or "simclue" in str(real(path)).lower() else "other"


def _say(path: Path, file: PairFile) -> None:
    left_out = f"; left out: {file.note}" if file.note else ""
    logger.info("%s: %s pairs%s", path.name, f"{len(file.pairs):,}", left_out)
