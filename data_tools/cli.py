"""`data_tools`: sample | clean | train-tokenizer | extend-tokenizer | preprocess | verify | inspect | merge.

Each command is a file of data_tools/commands; it imports what it needs when it runs, so --help is instant.
"""

import argparse
from collections.abc import Sequence

from cmbert.errors import run_command
from cmbert.progress import log_to_stdout
from cmbert.standard_streams import guard_standard_streams
from data_tools.commands import clean, extend_tokenizer, inspect, merge, preprocess, sample, train_tokenizer, verify

COMMANDS = (sample, clean, train_tokenizer, extend_tokenizer, preprocess, verify, inspect, merge)
"""In the order of --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a shard set with faults, 2 for a user's mistake."""
    guard_standard_streams()
    options = build_parser().parse_args(argv)
    log_to_stdout("data_tools", "%(message)s")
    return run_command("data_tools", lambda: options.command(options))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="data_tools", description="Chinese text to shards with word units.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
