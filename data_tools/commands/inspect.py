"""`data_tools inspect`: counts, lengths, words."""

import argparse
import sys
from pathlib import Path

from data_tools.commands.shared import add_optional_tokenizer


def add(commands: argparse._SubParsersAction) -> None:
    """Add `inspect`."""
    inspect = commands.add_parser(
        "inspect", help="counts, lengths, words", description="Counts and histograms; or one document with word marks."
    )
    inspect.add_argument("directory", type=Path, metavar="DIR", help="shard set")
    inspect.add_argument("--document", type=int, metavar="N", help="show document N, counted from 0, units marked")
    add_optional_tokenizer(inspect, "show text instead of token ids")
    inspect.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print what a shard set, or a document of it, holds."""
    from cmbert.tokenizer import load_tokenizer
    from data_tools.preprocessing.inspection import describe, show_document

    if options.document is None:
        print(describe(options.directory))
        return 0
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    print(show_document(options.directory, options.document, tokenizer, colour=sys.stdout.isatty()))
    return 0
