"""`cmbert eval`: held-out loss of a model."""

import argparse

from cmbert.cli_values import lengths, new_file, positive, tokens, units, utf8_path


def add(commands: argparse._SubParsersAction) -> None:
    """Add `eval`."""
    evaluate = commands.add_parser(
        "eval",
        help="held-out loss of a model",
        description="Masked loss in nats, accuracy; on the GPU in bf16 if there is one, else on the CPU in fp32. "
        "Several sets, contexts or units make one table.",
    )
    evaluate.add_argument("model", type=utf8_path, help="run directory, checkpoint or exported folder")
    evaluate.add_argument(
        "--data",
        action="extend",
        nargs="+",
        required=True,
        metavar="[NAME=]DIR",
        help="held-out shard sets, one per source or domain (default name: the folder's)",
    )
    evaluate.add_argument("--by-position", action="store_true", help="also by position in the segment, tokens")
    evaluate.add_argument(
        "--context", type=lengths, metavar="N,N", help="row lengths, tokens (default: the run's, or 1024)"
    )
    evaluate.add_argument(
        "--unit", type=units, default=["word"], metavar="U,U", help="hide whole words, tokens, or both (default word)"
    )
    evaluate.add_argument(
        "--long-context",
        type=tokens,
        metavar="N",
        help="instead: where quality breaks from 512 to N tokens, on the same hidden words of documents of N tokens",
    )
    evaluate.add_argument("--plot", type=new_file, metavar="FILE", help="draw --long-context as a PNG")
    evaluate.add_argument(
        "--max-rows", type=positive, metavar="N", help="score only the first N rows, or long documents (default: all)"
    )
    evaluate.add_argument("--output", type=new_file, metavar="FILE", help="also write the figures as JSON")
    evaluate.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Score a model on held-out sets; print the figures, and write them if asked."""
    from cmbert.evaluate.domains import name_sets
    from cmbert.evaluate.evaluation import Evaluation
    from cmbert.export.release import open_model
    from cmbert.files.whole import write_json

    evaluation = Evaluation(
        sets=name_sets(options.data),
        contexts=options.context,
        units=options.unit,
        max_rows=options.max_rows,
        by_position=options.by_position,
        long_context=options.long_context,
        plot=options.plot,
    )
    evaluation.check()
    figures = evaluation.score(open_model(options.model))
    if options.output:
        write_json(options.output, {"model": str(options.model), **figures})
    for written in filter(None, (options.output, options.plot)):
        print(f"written to {written}")
    return 0
