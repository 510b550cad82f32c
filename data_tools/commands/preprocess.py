"""`data_tools preprocess`: text to shards with word units."""

import argparse
from pathlib import Path

from cmbert.cli_values import positive
from data_tools.commands.shared import (
    add_input,
    add_output,
    add_processes,
    add_text_options,
    share_of,
    text_options,
    workers_of,
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
    add_processes(preprocess)
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
    from data_tools.preprocessing.preprocess import preprocess

    share = share_of(options)
    with workers_of(options) as workers:
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
            share=share,
        )
    return 0
