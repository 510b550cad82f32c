"""`data_tools clean`: normalise, filter, remove duplicates."""

import argparse
from pathlib import Path

from cmbert.cli_values import new_folder
from data_tools.commands.shared import add_input, add_workers


def add(commands: argparse._SubParsersAction) -> None:
    """Add `clean`."""
    clean = commands.add_parser(
        "clean",
        help="normalise, filter, remove duplicates",
        description="Write DIR/NNNNN.jsonl.zst, and what was dropped, why, with samples, to DIR/report.json and .html.",
    )
    add_input(clean)
    clean.add_argument("--output", type=new_folder, metavar="DIR", help="folder to make; without it only --heldout is")
    clean.add_argument("--config", type=Path, metavar="FILE", help="TOML, see recipes/large/clean (default: defaults)")
    clean.add_argument(
        "--heldout", type=new_folder, metavar="DIR", help="set heldout_share of the texts aside there (default: none)"
    )
    clean.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="PATH",
        help="drop what equals or nearly equals these texts, held out of any corpus (default: none)",
    )
    add_workers(clean)
    clean.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Clean the texts."""
    from data_tools.clean.clean import clean
    from data_tools.clean.config import load_clean_config

    config = load_clean_config(options.config)
    clean(
        options.inputs,
        options.output,
        config=config,
        num_workers=options.workers,
        heldout=options.heldout,
        against=options.against,
    )
    return 0
