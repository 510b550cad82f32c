"""`data_tools extend-tokenizer`: new ids for a domain, behind those of a tokenizer."""

import argparse
from pathlib import Path

from cmbert.cli_values import num_bytes, positive
from data_tools.commands.shared import INPUT_HELP, add_input, add_output, add_text_options, text_options
from data_tools.defaults import TOKENIZER_SAMPLE_BYTES


def add(commands: argparse._SubParsersAction) -> None:
    """Add `extend-tokenizer`."""
    extend = commands.add_parser(
        "extend-tokenizer",
        help="new ids for a domain, behind those of a tokenizer",
        description="Add the tokens that save most on a domain's text to a byte-level BPE tokenizer. Old ids keep "
        "their numbers and their meaning; text in which no new token occurs is encoded as before.",
    )
    extend.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer folder to extend")
    add_input(extend)
    add_output(extend, "folder to make; its extension.json says which old ids spell each new one, and the measures")
    extend.add_argument("--add", type=positive, required=True, metavar="N", help="new ids")
    extend.add_argument(
        "--other",
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"also measure how far the encodings of other text change; {INPUT_HELP}",
    )
    extend.add_argument(
        "--sample-size",
        type=num_bytes,
        default=TOKENIZER_SAMPLE_BYTES,
        metavar="N",
        help=f"learn from at most N bytes of UTF-8, for example 50MB, of every source its share (default "
        f"{TOKENIZER_SAMPLE_BYTES})",
    )
    add_text_options(extend)
    extend.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Extend the tokenizer."""
    from data_tools.tokenizer.extend import extend_tokenizer

    extend_tokenizer(
        options.tokenizer,
        options.inputs,
        options.output,
        add=options.add,
        other=options.other,
        sample_bytes=options.sample_size,
        **text_options(options),
    )
    return 0
