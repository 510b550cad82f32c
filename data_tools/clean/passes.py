"""The passes of `clean` over one input, each cut into tasks with a marker when one is done.

A pass begins when the one before it is complete, for all processes and jobs that work at it: then its tasks follow from
what that has left. Whoever does a task, and how often, the same bytes come out.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmbert.files.whole import write_json
from cmbert.progress import Progress
from data_tools.clean.evaluation_sets import (
    EvaluationItem,
    EvaluationSets,
    Join,
    hash_evaluation_file,
    join_evaluation_sets,
)
from data_tools.clean.heldout import join_sketches, sketch_texts
from data_tools.clean.setup import JOIN_EVALUATION, Item, Setup, marker_file
from data_tools.clean.tasks import cluster, compare_signatures, comparisons, filter_texts, write_texts
from data_tools.input.tasks import InputTask
from data_tools.runner import Share, Workers

Task = Callable[[Any], dict[str, Any]]


class Pass(NamedTuple):
    """One pass: what is done with each of the items, of which the record becomes the marker."""

    name: str
    task: Task
    items: Sequence[Any]
    sizes: Sequence[int] = ()
    """Bytes of input of each item, for progress; without, items are counted."""


class _Job(NamedTuple):
    """A task of a pass, as a worker gets it."""

    task: Task
    item: Any
    rank: int
    marker: Path
    size: int


def plan_passes(
    setup: Setup,
    tasks: Sequence[InputTask],
    held_out: Sequence[InputTask],
    sets: EvaluationSets,
) -> Iterator[Pass]:
    """Yield the passes; each must be complete before the next is asked for. held_out: texts nothing may be near to.

    sets: of texts that nothing may hold.
    """
    sizes = [task.num_bytes for task in tasks]
    if setup.held_out_texts:
        items = [Item(setup, rank, task.ranges) for rank, task in enumerate(held_out)]
        yield Pass("sketch held-out text", sketch_texts, items, [task.num_bytes for task in held_out])
        yield Pass("join sketches", join_sketches, [setup])
    if setup.evaluation_texts:
        files = [EvaluationItem(setup, rank, file) for rank, file in enumerate(sets.files)]
        yield Pass("read evaluation texts", hash_evaluation_file, files)
        yield Pass(JOIN_EVALUATION, join_evaluation_sets, [Join(setup, sets)])
    yield Pass("filter", filter_texts, [Item(setup, rank, task.ranges) for rank, task in enumerate(tasks)], sizes)
    if setup.config.duplicates.any:
        compared = comparisons(setup, len(tasks))
        yield Pass("compare", compare_signatures, compared)
        yield Pass("cluster", cluster, [compared])
    yield Pass("write", write_texts, [Item(setup, rank) for rank in range(len(tasks))], sizes)


def run_passes(setup: Setup, passes: Iterator[Pass], workers: Workers, share: Share | None) -> str | None:
    """Do what is missing of all passes and return None.

    With `share` only that share of the first pass that is not complete; return its name.
    """
    if not setup.is_publishing:
        for folder in setup.folders():
            folder.mkdir(parents=True, exist_ok=True)
    for current in passes:
        jobs = missing_jobs(setup.work, current)
        if not jobs:
            continue
        if share:
            run_jobs(current, [job for job in jobs if job.rank % share.num_jobs == share.number], workers)
            return current.name
        run_jobs(current, jobs, workers)
    return None


def missing_jobs(work: Path, current: Pass) -> list[_Job]:
    """Return the tasks of a pass that have no marker."""
    folder = marker_file(work, current.name, 0).parent
    folder.mkdir(exist_ok=True)
    there = set(os.listdir(folder))
    sizes = current.sizes or [1] * len(current.items)
    jobs = (
        _Job(current.task, item, rank, marker_file(work, current.name, rank), size)
        for rank, (item, size) in enumerate(zip(current.items, sizes, strict=True))
    )
    return [job for job in jobs if job.marker.name not in there]


def run_jobs(current: Pass, jobs: Sequence[_Job], workers: Workers) -> None:
    """Do tasks of one pass."""
    unit, scale = ("MB", 1e6) if current.sizes else ("tasks", 1)
    total = sum(current.sizes) if current.sizes else len(current.items)
    progress = Progress(
        f"clean: {current.name}", total / scale, unit, done=(total - sum(job.size for job in jobs)) / scale
    )
    try:
        for size in workers.map_unordered(_do, jobs):
            progress.advance(size / scale)
    finally:
        progress.close()


def _do(job: _Job) -> int:
    write_json(job.marker, job.task(job.item))
    return job.size
