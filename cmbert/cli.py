"""`cmbert`: the commands of COMMANDS.

Each is a file of cmbert/commands; it imports what it needs when it runs, so --help is instant.
"""

import argparse
import os
from collections.abc import Sequence

from cmbert.cluster.launchers import variables_in
from cmbert.cluster.preemption import StopRequest
from cmbert.commands import (
    ablate,
    bench,
    embed_train,
    export,
    finetune,
    import_,
    ledger,
    merge_checkpoints,
    new,
    plan,
    preflight,
    report,
    train,
)
from cmbert.commands import eval as evaluate
from cmbert.environment import make_room_for_modules
from cmbert.errors import run_command
from cmbert.progress import log_to_stdout
from cmbert.standard_streams import guard_standard_streams

COMMANDS = (
    new, import_, plan, preflight, train, evaluate, ablate, finetune, embed_train, bench, ledger,
    merge_checkpoints, export, report,
)  # fmt: skip
"""In the order of --help."""


def main(arguments: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Run one command; return 0, 2 for a user's mistake, 74 for what may pass. Commands of ranks end the process.

    They do so with 75, too, for a training run that was asked to stop (70: hung; 1: this or another rank failed).
    stop: listens to signals already, if it is a training that runs.
    """
    guard_standard_streams()
    options = build_parser().parse_args(arguments)
    options.stop = stop or StopRequest()
    log_to_stdout("cmbert", "%(asctime)s %(message)s")
    names = variables_in(os.environ)
    rank = os.environ[names[0]] if names else "0"
    program = "cmbert" if rank == "0" else f"cmbert (rank {rank})"
    if options.command in (train.run, preflight.run):
        from cmbert.cluster.ending import end, leave_when_asked

        if options.command == preflight.run:
            leave_when_asked(program)  # there is nothing to save
        end(program, lambda: options.command(options))
    make_room_for_modules()
    return run_command(program, lambda: options.command(options))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="cmbert", description="Pretrain, evaluate and export Chinese ModernBERT.")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed's launcher gives it, beside LOCAL_RANK
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
