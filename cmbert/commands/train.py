"""`cmbert train`: train one stage."""

import argparse
import os
import sys

from cmbert.cli_values import whole
from cmbert.cluster.launchers import is_launched
from cmbert.commands.shared import add_train_options

MOST_PROCESSES = 1024  # ours: more than one machine has GPUs or cores for


def add(commands: argparse._SubParsersAction) -> None:
    """Add `train`."""
    train = commands.add_parser(
        "train",
        help="train one stage",
        description="Train one stage, with one process per GPU: --processes N starts them on this machine; torchrun, "
        "deepspeed, srun and mpirun do on several.",
    )
    add_train_options(train)
    train.add_argument(
        "--processes", type=whole(1, MOST_PROCESSES), metavar="N", help="start N ranks on this machine, one per GPU"
    )
    train.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train; return 0, or 75 when asked to stop."""
    options.stop.listen()  # before the imports that take seconds: a signal then, too, ends in an orderly way
    options.stop.limit(options.stop_after_seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost peer is 25 lines of C++ frames on every rank
    from cmbert.cluster.local_ranks import refuse_second_launcher, run_ranks, without_option
    from cmbert.config.load import load_recipe

    if options.processes is not None:
        refuse_second_launcher(os.environ)
    recipe = load_recipe(options.recipe, options.overrides)
    if (options.processes or 1) > 1:
        from cmbert.config.deepspeed import resolve_deepspeed

        resolve_deepspeed(recipe, options.processes)  # what is wrong here, no rank need be started to say
        return run_ranks(options.processes, without_option(sys.argv[1:]), options.stop)
    from cmbert.train.loop import train

    if is_launched(os.environ):
        options.stop.follow_launcher()
    return train(
        recipe,
        resume=options.resume,
        max_steps=options.max_steps,
        stop=options.stop,
        skip_steps=options.skip_steps,
        allow_unfinished=options.allow_unfinished,
        branch=options.branch,
    )
