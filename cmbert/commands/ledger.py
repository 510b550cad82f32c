"""`cmbert ledger`: what a step saw."""

import argparse

from cmbert.cli_values import not_negative, utf8_path


def add(commands: argparse._SubParsersAction) -> None:
    """Add `ledger`."""
    ledger = commands.add_parser(
        "ledger", help="what a step saw", description="Which documents a step saw; the decoded batch with its masks."
    )
    ledger.add_argument("run", type=utf8_path, help="run directory")
    ledger.add_argument("--step", type=not_negative, required=True, metavar="N", help="optimizer step, counted from 0")
    ledger.add_argument("--show", action="store_true", help="also print the texts, ⟦masked⟧ (default: documents only)")
    ledger.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print what a step saw."""
    from cmbert.runs.ledger_view import print_step

    print_step(options.run, options.step, show=options.show)
    return 0
