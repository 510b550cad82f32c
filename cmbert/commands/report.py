"""`cmbert report`: one HTML page about a run."""

import argparse

from cmbert.cli_values import any_path, new_file


def add(commands: argparse._SubParsersAction) -> None:
    """Add `report`."""
    report = commands.add_parser("report", help="one HTML page about a run", description="Curves and figures of a run.")
    report.add_argument("run", type=any_path, help="run directory, or a folder of stages")
    report.add_argument("--output", type=new_file, required=True, metavar="FILE.html", help="page to write")
    report.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from cmbert.report.page import write_report

    write_report(options.run, options.output)
    return 0
