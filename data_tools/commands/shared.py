"""Options that several commands take."""

import argparse
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbert.cli_values import new_folder, positive
from data_tools.defaults import KINDS_LISTED, TXT_DOCUMENTS

if TYPE_CHECKING:
    from data_tools.runner import Share, Workers

INPUT_HELP = f"{KINDS_LISTED}: files, folders or globs, also s3://, oss:// and hf://datasets/OWNER/NAME"


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add --input."""
    parser.add_argument("--input", dest="inputs", nargs="+", required=True, metavar="PATH", help=INPUT_HELP)


def add_output(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --output; `text` is its help."""
    parser.add_argument("--output", type=new_folder, required=True, metavar="DIR", help=text)


def add_workers(parser: argparse._ActionsContainer, what: str = "processes") -> None:
    """Add --workers; `what` they are."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=positive, default=cores, metavar="N", help=f"{what} (default: usable cores, here {cores})"
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add who does the tasks: processes here, MPI ranks, jobs of an array."""
    who = parser.add_mutually_exclusive_group()
    add_workers(who)
    who.add_argument("--mpi", action="store_true", help="started by mpiexec or srun: rank 0 deals tasks to the others")
    parser.add_argument(
        "--num-tasks", type=positive, metavar="N", help="size of a job array (with --task-index; default: no array)"
    )
    parser.add_argument(
        "--task-index",
        type=int,
        metavar="I",
        help="do share I of N, from 0; when all are done, the command without these two options joins them",
    )


def workers_of(options: argparse.Namespace) -> "AbstractContextManager[Workers | None]":
    """Return who does the tasks; None on an MPI rank that has served."""
    from data_tools.runner import local_workers, mpi_workers

    return mpi_workers() if options.mpi else local_workers(options.workers)


def share_of(options: argparse.Namespace) -> "Share | None":
    """Return the share of an array's job. Raises ConfigError."""
    from data_tools.runner import Share

    return Share.of(options.task_index, options.num_tasks)


def add_optional_tokenizer(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --tokenizer; `text` says what for."""
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=f"tokenizer folder: {text} (default: none)")


def add_text_options(parser: argparse.ArgumentParser, *, configured: bool = False) -> None:
    """Add how texts are found in the input; configured: a --config file may say it, too, and the option wins."""
    or_config = ", or what --config says" if configured else ""
    defaults = (None, None, None) if configured else ("text", "fail", TXT_DOCUMENTS[0])
    parser.add_argument(
        "--text-key",
        default=defaults[0],
        metavar="KEY",
        help=f"name of the text's field or column (default text{or_config})",
    )
    parser.add_argument(
        "--on-bad-line",
        choices=["fail", "skip"],
        default=defaults[1],
        help=f"a line or row without usable text: stop there, or skip and count it (default fail{or_config})",
    )
    parser.add_argument(
        "--txt-document",
        choices=TXT_DOCUMENTS,
        default=defaults[2],
        help=f"what a document of .txt is: a line, what lies between blank lines, the whole file (default line"
        f"{or_config})",
    )


def text_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what add_text_options added, by name; without those of a `configured` command that were not given."""
    names = ("text_key", "on_bad_line", "txt_document")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
