"""`cmbert finetune`: CLUE's tasks and your own, tuned, with several seeds."""

import argparse

from cmbert.cli_values import any_path, integers, numbers, positive, tokens, utf8_path, words
from cmbert.commands.shared import add_trust_remote_code

CHOICES = ("task", "data", "train", "dev", "test", "text", "label", "problem_type", "max_length")  # of tasks


def add(commands: argparse._SubParsersAction) -> None:
    """Add `finetune`."""
    finetune = commands.add_parser(
        "finetune",
        help="CLUE's tasks and your own, tuned, with several seeds",
        description="Fine-tune a model on tasks, or on files of your own (--train): the setting that is best on dev, "
        "then several seeds of it. Results go to DIR/TASK/MODEL/ and, of all models so far, to DIR/results.md and "
        "DIR/results.html.",
    )
    finetune.add_argument(
        "--model", required=True, metavar="MODEL", help="run, checkpoint, folder, or a name transformers knows"
    )
    finetune.add_argument(
        "--task",
        type=words,
        metavar="TASK,TASK",
        help="CLUE's tasks, those shipped beside them (chnsenticorp, ...), or TOML files of your own",
    )
    finetune.add_argument(
        "--data", type=any_path, metavar="DIR", help="the task's files; of several tasks, their parent"
    )
    _add_files(finetune)
    finetune.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="results of all models")
    finetune.add_argument(
        "--save",
        type=utf8_path,
        metavar="DIR",
        help="folder for the best seed's model; of several tasks DIR/TASK",
    )
    finetune.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of the best setting (default 3)")
    finetune.add_argument("--grid", action="store_true", help="try five rates around the default, two batches")
    finetune.add_argument(
        "--learning-rates",
        type=numbers,
        metavar="X,X",
        help="try these peak rates instead (default: the task's, else by the model's width)",
    )
    finetune.add_argument(
        "--batch-sizes", type=integers, metavar="N,N", help="likewise, examples (default: the task's)"
    )
    finetune.add_argument(
        "--epochs", type=integers, metavar="N,N", help="likewise, passes (default: the task's, else by the examples)"
    )
    finetune.add_argument("--untrained", action="store_true", help="the same network with fresh weights: a baseline")
    finetune.add_argument("--name", metavar="NAME", help="of the model in folders and tables (default: from its path)")
    add_trust_remote_code(finetune)
    finetune.set_defaults(command=run)


def _add_files(finetune: argparse.ArgumentParser) -> None:
    """Add the options that make a task of files, in place of --task and --data."""
    finetune.add_argument(
        "--train", type=utf8_path, metavar="FILE", help="learn from this .csv, .tsv, .json or .jsonl file instead"
    )
    finetune.add_argument("--dev", type=utf8_path, metavar="FILE", help="judge by it (default: a tenth of --train)")
    finetune.add_argument("--test", type=utf8_path, metavar="FILE", help="answer it, and score it if it has labels")
    finetune.add_argument("--text", type=words, metavar="COLUMN", help="of the text; COLUMN,COLUMN for a pair")
    finetune.add_argument("--label", metavar="COLUMN", help="of the label, the labels (a|b) or the number")
    finetune.add_argument(
        "--problem-type",
        choices=["single_label_classification", "multi_label_classification", "regression"],
        help="what a label is: one of several (default), any number of them, or a number",
    )
    finetune.add_argument(
        "--max-length", type=tokens, metavar="N", help="cut texts of --train and the others to N tokens (default 128)"
    )


def run(options: argparse.Namespace) -> int:
    """Fine-tune a model on the tasks, or do what is left of it, and print the table of all models so far."""
    from cmbert.transfer.finetune.defaults import Asked
    from cmbert.transfer.finetune.run import finetune_tasks
    from cmbert.transfer.tasks.chosen import Chosen

    finetune_tasks(
        options.model,
        Chosen(**{name: getattr(options, name) for name in CHOICES}).tasks(),
        options.output,
        asked=Asked(
            learning_rates=tuple(options.learning_rates or ()),
            batch_sizes=tuple(options.batch_sizes or ()),
            epochs=tuple(options.epochs or ()),
            grid=options.grid,
        ),
        num_seeds=options.seeds,
        name=options.name,
        untrained=options.untrained,
        trust=options.trust_remote_code,
        save=options.save,
    )
    return 0
