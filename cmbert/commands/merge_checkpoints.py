"""`cmbert merge-checkpoints`: the mean of several checkpoints of a run, beside their held-out scores."""

import argparse

from cmbert.cli_values import integers, numbers, utf8_path


def add(commands: argparse._SubParsersAction) -> None:
    """Add `merge-checkpoints`."""
    merge = commands.add_parser(
        "merge-checkpoints",
        help="the mean of several checkpoints of a run as one model",
        description="Average the fp32 weights of checkpoints, print the held-out score of each and of their mean, and "
        "write it as a folder that eval, export, finetune, embed-train and train.init_from take as a model.",
    )
    merge.add_argument("run", type=utf8_path, metavar="RUN", help="run directory")
    merge.add_argument(
        "--steps", type=integers, required=True, metavar="A,B,C", help="of its checkpoints: step_000001000 is 1000"
    )
    merge.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="folder to make")
    merge.add_argument(
        "--weights", type=numbers, metavar="X,X,X", help="of the steps in that order, in any unit (default: equal)"
    )
    merge.add_argument(
        "--data", type=utf8_path, metavar="DIR", help="held-out shard set (default: evaluation.shards of the run)"
    )
    merge.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Merge checkpoints and print their scores."""
    from cmbert.export.merging import merge_checkpoints

    merge_checkpoints(options.run, options.steps, options.output, weights=options.weights, data=options.data)
    print(f"written to {options.output}")
    return 0
