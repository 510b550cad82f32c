"""`data_tools preprocess`: text to shards with word units."""

import argparse
from pathlib import Path

from cmbert.cli_values import positive
from cmbert.errors import ConfigError
from data_tools.commands.shared import (
    add_input,
    add_output,
    add_text_options,
    add_workers,
    text_options,
)
from data_tools.defaults import SHARD_TOKENS


def add(commands: argparse._SubParsersAction) -> None:
    """Add `preprocess`."""
    preprocess = commands.add_parser(
        "preprocess",
        help="text to shards with word units",
        description="Segment, tokenize and align; the same bytes come out for any number of workers.",
    )
    add_input(preprocess)
    preprocess.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json")
    add_output(preprocess, "shard set to make")
    who = preprocess.add_mutually_exclusive_group()
    add_workers(who)
    who.add_argument("--mpi", action="store_true", help="started by mpiexec or srun: rank 0 deals tasks to the others")
    preprocess.add_argument(
        "--num-tasks", type=positive, metavar="N", help="size of a job array (with --task-index; default: no array)"
    )
    preprocess.add_argument(
        "--task-index",
        type=int,
        metavar="I",
        help="do share I of N, from 0; when all are done, the command without these two options joins them",
    )
    preprocess.add_argument(
        "--segmenter",
        choices=["auto", "jieba", "rjieba"],
        default="auto",
        help="auto: rjieba if installed, else jieba (default); the boundaries are the same",
    )
    preprocess.add_argument(
        "--shard-tokens",
        type=positive,
        default=SHARD_TOKENS,
        metavar="N",
        help=f"most tokens of a shard (default {SHARD_TOKENS}: 2 GB of 16-bit ids)",
    )
    add_text_options(preprocess)
    preprocess.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Make the shard set, or this job's part of it."""
    from data_tools.preprocessing.preprocess import Share, preprocess
    from data_tools.runner import local_workers, mpi_workers

    if (options.num_tasks is None) != (options.task_index is None):
        raise ConfigError("--num-tasks and --task-index: give both (a job of an array) or none")
    with mpi_workers() if options.mpi else local_workers(options.workers) as workers:
        if workers is None:
            return 0  # an MPI rank that has served
        preprocess(
            options.inputs,
            options.tokenizer,
            options.output,
            segmenter_name=options.segmenter,
            **text_options(options),
            shard_tokens=options.shard_tokens,
            workers=workers,
            share=None if options.num_tasks is None else Share(options.task_index, options.num_tasks),
        )
    return 0
