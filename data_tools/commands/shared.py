"""Options that several commands take."""

import argparse
import os
from pathlib import Path

from cmbert.cli_values import new_folder, positive

INPUT_HELP = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt (a document a line): files, folders or globs"


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add --input."""
    parser.add_argument("--input", dest="inputs", nargs="+", required=True, metavar="PATH", help=INPUT_HELP)


def add_output(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --output; `text` is its help."""
    parser.add_argument("--output", type=new_folder, required=True, metavar="DIR", help=text)


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Add --workers."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=positive, default=cores, metavar="N", help=f"processes (default: usable cores, here {cores})"
    )


def add_optional_tokenizer(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --tokenizer; `text` says what for."""
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=f"tokenizer folder: {text} (default: none)")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add how texts are found in the input."""
    parser.add_argument("--text-key", default="text", metavar="KEY", help="name of the text's field (default text)")
    parser.add_argument(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="a line without usable text: stop there, or skip and count it (default fail)",
    )
