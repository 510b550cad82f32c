"""`cmbert preflight`: are this job's nodes fit."""

import argparse
import os
from pathlib import Path

from cmbert.cli_values import any_path, not_negative, positive_number, words
from cmbert.commands.shared import add_train_options


def add(commands: argparse._SubParsersAction) -> None:
    """Add `preflight`."""
    preflight = commands.add_parser(
        "preflight",
        help="are this job's nodes fit",
        description="Check GPUs, memory, disk, matmul and all-reduce of every node against the others; started like "
        "train and with its options. Exit 69: nodes are not fit. 2: too many starts without a new checkpoint.",
    )
    add_train_options(preflight)
    preflight.add_argument(
        "--result", type=any_path, required=True, metavar="DIR", help="shared folder for `life` and `bad_nodes`"
    )
    preflight.add_argument(
        "--nodes", type=words, default=[], metavar="A,B", help="names in the order of ranks (default: not known)"
    )
    preflight.add_argument(
        "--wait-seconds",
        type=positive_number,
        default=300,
        metavar="S",
        help="a rank silent for so long is dead (default 300)",
    )
    preflight.add_argument(
        "--max-lives", type=not_negative, metavar="N", help="starts of a job at one checkpoint (default: any number)"
    )
    preflight.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Check the nodes; return 0, or 69 if they are not fit."""
    from cmbert.cluster.distributed import read_launch
    from cmbert.cluster.preflight import preflight
    from cmbert.config.load import load_recipe

    recipe, launch = load_recipe(options.recipe, options.overrides), read_launch(os.environ)
    run = Path(recipe.run_directory)

    def begin() -> None:
        from cmbert.train.lives import begin_life, steps_to_reach

        reach = steps_to_reach(recipe, options.resume, options.max_steps, options.allow_unfinished, options.branch)
        begin_life(run, launch, options.result, options.max_lives, reach)

    return preflight(
        run, launch, result=options.result, nodes=options.nodes, wait_seconds=options.wait_seconds, begin=begin
    )
