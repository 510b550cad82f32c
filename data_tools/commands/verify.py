"""`data_tools verify`: find every fault of a shard set."""

import argparse
from pathlib import Path

from data_tools.commands.shared import add_optional_tokenizer


def add(commands: argparse._SubParsersAction) -> None:
    """Add `verify`."""
    verify = commands.add_parser(
        "verify", help="find every fault of a shard set", description="List every fault; exit 1 if there is one."
    )
    verify.add_argument("directory", type=Path, metavar="DIR", help="shard set")
    verify.add_argument("--quick", action="store_true", help="skip the hashes (default: compute them)")
    add_optional_tokenizer(verify, "compare its fingerprint, encode and segment sampled documents again")
    verify.add_argument(
        "--input", dest="inputs", nargs="+", default=[], metavar="PATH", help="what it was made from: compare documents"
    )
    verify.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the faults of a shard set; return 1 if there is one."""
    from cmbert.tokenizer import load_tokenizer
    from data_tools.preprocessing.verify import EXIT_FAULTS, print_faults

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    found = print_faults(options.directory, quick=options.quick, tokenizer=tokenizer, source=options.inputs)
    return EXIT_FAULTS if found else 0
