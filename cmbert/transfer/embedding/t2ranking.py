"""Reader of T2Ranking (huggingface.co/datasets/THUIR/T2Ranking): who belongs to whom first, texts after, as a stream.

Tab-separated, with or without a header line, not quoted:
    collection.tsv             pid, text: 2.3 million passages, 3.7 GB
    queries.train.tsv          qid, text
    qrels.train.tsv            qid, -, pid, relevance 0 to 3 (TREC's four columns)
    qrels.retrieval.train.tsv  qid, pid: those of relevance 2 and 3
"""

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cmbert.errors import InputError
from cmbert.files.reading import lines_of, shown
from cmbert.progress import Progress
from cmbert.transfer.embedding.pairs import Pair

logger = logging.getLogger(__name__)

COLLECTION, QUERIES = "collection.tsv", "queries.train.tsv"
NUMBER = re.compile(r"[0-9]{1,18}")
JUDGED, RETRIEVAL = "qrels.train.tsv", "qrels.retrieval.train.tsv"
POSITIVE_RELEVANCE = 2  # T2Ranking, section 3: 2 and 3 count as relevant in retrieval
NEGATIVE_RELEVANCE = 0  # judged "completely irrelevant"; 1, on the topic, is left out


class Reference(NamedTuple):
    """A pair by the numbers of its texts: query, passage that answers it, passage judged irrelevant if there is one."""

    query: int
    positive: int
    negative: int | None = None


def data_folder(folder: Path) -> Path:
    """Return where the tables are: `folder` or, as in the released repository, its folder `data`."""
    return folder / "data" if (folder / "data" / COLLECTION).is_file() else folder


def files_of(folder: Path) -> list[Path]:
    """Return the tables that are read: collection, queries, judgements. Raises InputError if one is missing."""
    folder = data_folder(folder)
    judgements = JUDGED if (folder / JUDGED).is_file() else RETRIEVAL
    paths = [folder / name for name in (COLLECTION, QUERIES, judgements)]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; a folder of pairs must be T2Ranking, with {COLLECTION}")
    return paths


def read_references(folder: Path) -> list[Reference]:
    """Return every query with each passage that answers it, in the order of the file, without the texts.

    With graded judgements each pair gets a passage judged irrelevant to the same query, in turn. Raises InputError.
    """
    path = files_of(folder)[-1]
    is_judged = path.name == JUDGED
    positives: dict[int, list[int]] = defaultdict(list)
    negatives: dict[int, list[int]] = defaultdict(list)
    between = 0
    for number, columns in _rows(path, 4 if is_judged else 2):
        query, passage = (_integer(path, number, columns[column]) for column in (0, 2 if is_judged else 1))
        relevance = _integer(path, number, columns[3]) if is_judged else POSITIVE_RELEVANCE
        if not 0 <= relevance <= 3:
            raise InputError(f"{path}:{number}: relevance is {relevance}; it must be 0, 1, 2 or 3")
        if relevance >= POSITIVE_RELEVANCE:
            positives[query].append(passage)
        elif relevance == NEGATIVE_RELEVANCE:
            negatives[query].append(passage)
        else:
            between += 1
    if not positives:
        raise InputError(f"{path}: no passage answers a query; give T2Ranking's own file")
    references = []
    for query, passages in positives.items():
        against = itertools.cycle(negatives.get(query, [None]))
        references += [Reference(query, passage, next(against)) for passage in dict.fromkeys(passages)]
    repeated = sum(map(len, positives.values())) - len(references)
    if between or repeated:
        logger.info("%s: left out: %s of relevance 1, %s repeated", path.name, f"{between:,}", f"{repeated:,}")
    return references


def resolve(folder: Path, references: Iterable[Reference], *, negatives: bool) -> list[Pair]:
    """Return the texts of `references`, in order; only those are kept in memory. InputError if one is missing."""
    references = list(references)
    collection, queries, _ = files_of(folder)
    wanted = {reference.positive for reference in references}
    if negatives:
        wanted |= {reference.negative for reference in references if reference.negative is not None}
    asked = _texts(queries, {reference.query for reference in references})
    passages = _texts(collection, wanted)
    return [Pair(asked[q], passages[p], passages[n] if negatives and n is not None else None) for q, p, n in references]


def _texts(path: Path, wanted: set[int]) -> dict[int, str]:
    texts: dict[int, str] = {}
    progress = Progress(path.name, path.stat().st_size / 1e6, "MB")
    for number, (index, text) in _rows(path, 2):
        progress.advance(len(text.encode()) / 1e6)
        identifier = _integer(path, number, index)
        if identifier in wanted:
            if not text.strip():
                raise InputError(f"{path}:{number}: empty text of {identifier}, which a pair needs; remove its pairs")
            if texts.setdefault(identifier, text) != text:
                raise InputError(f"{path}:{number}: a second text of {identifier}; remove one")
    progress.close()
    if missing := wanted - texts.keys():
        raise InputError(f"{path}: no text of {min(missing)} ({len(missing):,} missing), which pairs need")
    return texts


def _rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    header = next(lines_of(path))[0]
    for number, line in lines_of(path):
        row = line.split("\t", maxsplit=columns - 1)
        if len(row) != columns:
            raise InputError(f"{path}:{number}: {len(row)} columns, must be {columns} with tabs between them")
        if number == header and row[0] in ("qid", "pid"):
            continue
        yield number, row


def _integer(path: Path, number: int, text: str) -> int:
    if not NUMBER.fullmatch(text):
        raise InputError(f"{path}:{number}: {shown(text)} is not a whole number")
    return int(text)
