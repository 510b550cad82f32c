"""Options that several commands take."""

import argparse

from cmbert.cli_values import any_path, positive, positive_number, step_range


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add a recipe, and what overrides its keys."""
    parser.add_argument("recipe", type=any_path, help="recipe file (TOML), see recipes/")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override a key; repeatable"
    )


def add_train_options(train: argparse.ArgumentParser) -> None:
    """Add what `train` takes, and `preflight`, which stands before it."""
    add_recipe(train)
    train.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="continue what the run has (default auto)"
    )
    train.add_argument(
        "--branch", metavar="RUN@STEP", help="begin a new run at a checkpoint of RUN, with its optimizer and its data"
    )
    train.add_argument("--max-steps", type=positive, metavar="N", help="stop after N optimizer steps of this call")
    train.add_argument("--stop-after-seconds", type=positive_number, metavar="S", help="save and stop after S seconds")
    train.add_argument(
        "--skip-steps",
        type=step_range,
        metavar="A:B",
        help="skip the data of steps A to B-1, still to do: bad batches; recorded in checkpoints and ledger",
    )
    train.add_argument(
        "--allow-unfinished", action="store_true", help="start although the run that train.init_from names is not done"
    )


def add_trust_remote_code(command: argparse.ArgumentParser) -> None:
    """Add --trust-remote-code."""
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that came with the model (read it first)"
    )
