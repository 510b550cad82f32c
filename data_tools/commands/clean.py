"""`data_tools clean`: normalise, filter, remove duplicates."""

import argparse
from dataclasses import replace
from pathlib import Path

from cmbert.cli_values import new_folder
from data_tools.commands.shared import add_input, add_processes, add_text_options, share_of, text_options, workers_of


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
        "--heldout",
        type=new_folder,
        metavar="DIR",
        help="set texts aside there that nothing is to be trained on: heldout_share of them, by default a thousandth, "
        "but some 500 at least, a tenth at most (default: none)",
    )
    clean.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="PATH",
        help="drop what equals or nearly equals these texts, held out of any corpus, or what these --signatures of "
        "earlier cleanings are of (default: none)",
    )
    clean.add_argument(
        "--signatures",
        type=new_folder,
        metavar="DIR",
        help="keep there what tells duplicates of what stays, for a later --against (default: not kept)",
    )
    add_text_options(clean, configured=True)
    add_processes(clean)
    clean.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Clean the texts."""
    from data_tools.clean.clean import clean
    from data_tools.clean.config import load_clean_config

    config = replace(load_clean_config(options.config), **text_options(options))
    share = share_of(options)
    with workers_of(options) as workers:
        if workers is None:
            return 0  # an MPI rank that has served
        clean(
            options.inputs,
            options.output,
            config=config,
            workers=workers,
            share=share,
            heldout=options.heldout,
            against=options.against,
            signatures=options.signatures,
        )
    return 0
