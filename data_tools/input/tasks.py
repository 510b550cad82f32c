"""The input cut into tasks: small enough to lose one, large enough that a corpus has thousands and not millions.

How the input is cut never shows in the output: parts are joined in the order of the tasks, and shards are cut anew.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from data_tools.defaults import TXT_DOCUMENTS
from data_tools.input.readers import ByteRange
from data_tools.input.streams import is_compressed, kind_of, row_group_bytes, text_bytes
from data_tools.storage.files import InputFile, size_of

SMALLEST_TASK_BYTES = 4_000_000  # half a second of work
LARGEST_TASK_BYTES = 256_000_000  # half a minute of work; 5.66 TB are then 22,000 tasks
MOST_TASKS = 4096  # tasks grow with the input until they reach LARGEST_TASK_BYTES
FEW_FILES = 64  # with more files than this, compressed ones are not cut: they can share the work among them
COMPRESSED_CUTS = 8  # every part of a compressed file decompresses all that lies before it


@dataclass(frozen=True)
class InputTask:
    """Byte ranges of input that one worker turns into one part of the output."""

    ranges: tuple[ByteRange, ...]
    num_bytes: int
    """About as much as the byte ranges take on disk; for progress."""

    def identity(self, settings: dict[str, Any]) -> str:
        """Return a name for what this task makes of its input, another one as soon as a setting changes.

        settings: with what `describe_inputs` says of the byte ranges' files, so that an edited file is another input.
        """
        ranges = [(_identity(path), start, end) for path, start, end in self.ranges]
        described = json.dumps([settings, ranges], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(described.encode(), digest_size=12).hexdigest()


def _identity(path: InputFile) -> str:
    return str(path.resolve() if isinstance(path, Path) else path)


def plan_tasks(files: Sequence[InputFile], txt_document: str = TXT_DOCUMENTS[0]) -> list[InputTask]:
    """Cut `files` into tasks, in order. Raises InputError for a damaged file that has to be looked into."""
    sizes = [size_of(path) for path in files]
    task_bytes = min(max(sum(sizes) // MOST_TASKS, SMALLEST_TASK_BYTES), LARGEST_TASK_BYTES)
    few = len(files) <= FEW_FILES
    ranges = (
        span
        for path, size in zip(files, sizes, strict=True)
        for span in (
            _cut(path, size, task_bytes, few, txt_document) if size > task_bytes else [(ByteRange(path), size)]
        )
    )
    return list(_group(ranges, task_bytes))


def _group(ranges: Iterable[tuple[ByteRange, int]], task_bytes: int) -> Iterator[InputTask]:
    """Join neighbours until they reach `task_bytes`: a folder of tiny files makes few tasks."""
    group: list[ByteRange] = []
    total = 0
    for span, size in ranges:
        group.append(span)
        total += size
        if total >= task_bytes:
            yield InputTask(tuple(group), total)
            group, total = [], 0
    if group:
        yield InputTask(tuple(group), total)


def _cut(
    path: InputFile, size: int, task_bytes: int, few_files: bool, txt_document: str
) -> list[tuple[ByteRange, int]]:
    """Return the byte ranges of a file larger than a task, with their share of its size."""
    kind = kind_of(path)
    if kind == "parquet":
        ends = accumulate(row_group_bytes(path), initial=0)
        firsts = [
            index for index, (a, b) in enumerate(pairwise(ends)) if index == 0 or a // task_bytes < b // task_bytes
        ]
        bounds: list[int | None] = [*firsts, None]
    elif kind not in ("jsonl", "txt") or (kind == "txt" and txt_document != TXT_DOCUMENTS[0]):
        bounds = [0, None]  # where a record begins is known only to who has read all before it
    elif not is_compressed(path):
        bounds = [*range(0, size, task_bytes), None]
    elif few_files and isinstance(path, Path):  # in a store each part would fetch all that lies before it
        whole = text_bytes(path)
        step = max(task_bytes, -(-whole // COMPRESSED_CUTS))
        bounds = [*range(0, whole, step), None]
    else:
        bounds = [0, None]
    share = size // (len(bounds) - 1)
    return [(ByteRange(path, start or 0, end), share) for start, end in pairwise(bounds)]
