"""What a sample is chosen from: the documents with the smallest hashes, found in one pass by any number of processes.

Whoever reads, and in whatever order, the same documents are found, and of equal texts the first of the input.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cmbert.progress import Progress
from data_tools.input.document import Document, Purpose, text_hash
from data_tools.input.readers import DocumentReader
from data_tools.input.tasks import InputTask
from data_tools.runner import local_workers

CANDIDATES = 3  # times the sample's bytes in memory, so that what is left out can be made up for
SPARE = 4  # times its share of the candidates a task may give; more is asked for again
LEAST_BYTES = 8_000_000  # that a task may give
ALL_HASHES = 2**64


class Candidate(NamedTuple):
    """A document that may be chosen."""

    num_bytes: int
    """Of its text as UTF-8."""
    order: int
    """Of equal texts the lowest stays."""
    document: Document
    copies: int = 1
    """How many texts equal it."""


class Candidates:
    """The documents whose hashes lie in [floor, bound), of at most `limit` bytes; the bound falls to that end."""

    def __init__(self, limit: int, floor: int = 0, bound: int = ALL_HASHES):
        self.limit, self.floor, self.bound = limit, floor, bound
        self.by_hash: dict[int, Candidate] = {}
        self.largest: list[int] = []  # the hashes' negatives, as a heap
        self.num_bytes = 0

    def add(self, key: int, new: Candidate) -> None:
        """Take in a document by its hash, or count it as a copy."""
        if not self.floor <= key < self.bound:
            return
        if old := self.by_hash.get(key):
            first = min(old, new, key=lambda candidate: candidate.order)
            self.by_hash[key] = first._replace(copies=old.copies + new.copies)
            return
        self.by_hash[key] = new
        heapq.heappush(self.largest, -key)
        self.num_bytes += new.num_bytes
        while self.num_bytes > self.limit:
            self.bound = -heapq.heappop(self.largest)
            self.num_bytes -= self.by_hash.pop(self.bound).num_bytes

    def in_order(self) -> list[Candidate]:
        """Return them by their hashes."""
        return [self.by_hash[key] for key in sorted(self.by_hash)]


@dataclass
class Gathered:
    """What one pass over documents finds."""

    candidates: Candidates
    read: int = 0
    """Documents."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Documents without text, and larger than all that is asked for."""
    sources: Counter[str] = field(default_factory=Counter)
    """Bytes of UTF-8 by source."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records that are no documents, by reason."""


def gather(
    documents: Iterable[Document],
    size_bytes: int,
    purpose: Purpose,
    candidates: Candidates | None = None,
    order: int = 0,
) -> Gathered:
    """Return the documents with the smallest hashes for `purpose`, CANDIDATES times `size_bytes`, and counts of all.

    None is longer than `size_bytes`: a book would drive out all that come after it, and then itself.
    """
    found = Gathered(candidates or Candidates(CANDIDATES * size_bytes))
    for document in documents:
        num_bytes = len(document.text.encode("utf-8"))
        found.read += 1
        found.sources[document.source] += num_bytes
        if not document.text.strip():
            found.left_out["empty_text"] += 1
        elif num_bytes > size_bytes:
            found.left_out["larger_than_size"] += 1
        else:
            found.candidates.add(text_hash(document.text, purpose), Candidate(num_bytes, order, document))
    return found


class _Reading(NamedTuple):
    """A task, and which hashes of it are asked for; it is pickled."""

    number: int
    task: InputTask
    how: dict[str, Any]
    size_bytes: int
    purpose: Purpose
    limit: int
    floor: int
    bound: int


def gather_tasks(
    tasks: Sequence[InputTask], how: dict[str, Any], size_bytes: int, purpose: Purpose, num_workers: int = 1
) -> Gathered:
    """Return what `gather` does of the documents of `tasks`, read by `num_workers` processes.

    how: as `reading_options` gives it. A task gives little more than its share of the candidates, and less as soon as
    the others have shown that larger hashes will not do; one that kept too little for that, for its texts are another
    kind or the others' are copies, is read again from there on. Raises what DocumentReader does.
    """
    whole = Gathered(Candidates(CANDIDATES * size_bytes))
    limit = max(SPARE * whole.candidates.limit // max(len(tasks), 1), LEAST_BYTES)
    floors = dict.fromkeys(range(len(tasks)), 0)
    progress = Progress("read", sum(task.num_bytes for task in tasks) / 1e6, "MB")

    def readings() -> Iterator[_Reading]:
        for number, floor in floors.items():
            bound = whole.candidates.bound  # as it is when the task is dealt out
            yield _Reading(number, tasks[number], how, size_bytes, purpose, limit, floor, bound)

    with local_workers(max(1, min(num_workers, len(tasks)))) as workers:
        while floors:
            bounds: dict[int, int] = {}
            for number, found in workers.map_unordered(_read, readings()):
                _join(whole, found, is_first=floors[number] == 0)
                bounds[number] = found.candidates.bound
                progress.advance(tasks[number].num_bytes / 1e6 if floors[number] == 0 else 0)
            floors = {number: bounds[number] for number in floors if bounds[number] < whole.candidates.bound}
            limit *= SPARE
    progress.close()
    return whole


def _read(reading: _Reading) -> tuple[int, Gathered]:
    reader = DocumentReader(reading.task.ranges, **reading.how)
    candidates = Candidates(reading.limit, reading.floor, reading.bound)
    found = gather(reader, reading.size_bytes, reading.purpose, candidates, reading.number)
    found.skipped = reader.skipped
    return reading.number, found


def _join(whole: Gathered, part: Gathered, is_first: bool) -> None:
    for key, candidate in part.candidates.by_hash.items():
        whole.candidates.add(key, candidate)
    if is_first:
        whole.read += part.read
        whole.left_out += part.left_out
        whole.sources += part.sources
        whole.skipped += part.skipped
