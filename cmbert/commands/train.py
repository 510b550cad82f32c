"""`cmbert train`: train one stage."""

import argparse
import os

from cmbert.cluster.launchers import is_launched
from cmbert.commands.shared import add_train_options


def add(commands: argparse._SubParsersAction) -> None:
    """Add `train`."""
    train = commands.add_parser(
        "train",
        help="train one stage",
        description="Train one stage. Start it alone or by torchrun, deepspeed, srun or mpirun, one process per GPU.",
    )
    add_train_options(train)
    train.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train; return 0, or 75 when asked to stop."""
    options.stop.listen()  # before the imports that take seconds: a signal then, too, ends in an orderly way
    options.stop.limit(options.stop_after_seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost peer is 25 lines of C++ frames on every rank
    from cmbert.config.load import load_recipe
    from cmbert.train.loop import train

    if is_launched(os.environ):
        options.stop.follow_launcher()
    return train(
        load_recipe(options.recipe, options.overrides),
        resume=options.resume,
        max_steps=options.max_steps,
        stop=options.stop,
        skip_steps=options.skip_steps,
        allow_unfinished=options.allow_unfinished,
    )
