"""`data_tools merge`: join shard sets."""

import argparse
from pathlib import Path

from data_tools.commands.shared import add_output


def add(commands: argparse._SubParsersAction) -> None:
    """Add `merge`."""
    merge = commands.add_parser(
        "merge", help="join shard sets", description="Join shard sets of one tokenizer; files are linked, else copied."
    )
    merge.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="shard sets, in order")
    add_output(merge, "shard set to make")
    merge.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Join them."""
    from data_tools.preprocessing.merge import merge

    merge(options.directories, options.output)
    return 0
