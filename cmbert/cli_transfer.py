"""The commands that train a model further: finetune | embed-train. Each imports what it needs when it runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cmbert.cli_values import any_path, integers, numbers, positive, positive_number, seed, utf8_path, words

if TYPE_CHECKING:
    from cmbert.transfer.embedding.run import EmbeddingRun
    from cmbert.transfer.finetune.backbone import Backbone


def add_finetune(commands: argparse._SubParsersAction) -> None:
    """Add `finetune`."""
    finetune = commands.add_parser(
        "finetune",
        help="CLUE and other tasks, tuned, with several seeds",
        description="Fine-tune a model on tasks: the setting that is best on dev, then several seeds of it. Results go "
        "to DIR/TASK/MODEL/ and, of all models so far, to DIR/results.md and DIR/results.html.",
    )
    finetune.add_argument(
        "--model", required=True, metavar="MODEL", help="run, checkpoint, folder, or a name transformers knows"
    )
    finetune.add_argument(
        "--task",
        required=True,
        type=words,
        metavar="TASK,TASK",
        help="CLUE's tasks, or TOML files of others",
    )
    finetune.add_argument(
        "--data",
        type=any_path,
        required=True,
        metavar="DIR",
        help="the task's files; of several tasks, their parent",
    )
    finetune.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="results of all models")
    finetune.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of the best setting (default 3)")
    finetune.add_argument("--grid", action="store_true", help="try the fixed grid of rates and batches")
    finetune.add_argument(
        "--learning-rates", type=numbers, metavar="X,X", help="try these peak rates instead (default: the task's)"
    )
    finetune.add_argument(
        "--batch-sizes", type=integers, metavar="N,N", help="likewise, examples (default: the task's)"
    )
    finetune.add_argument("--epochs", type=integers, metavar="N,N", help="likewise, passes (default: the task's)")
    finetune.add_argument("--untrained", action="store_true", help="the same network with fresh weights: a baseline")
    finetune.add_argument("--name", metavar="NAME", help="of the model in folders and tables (default: from its path)")
    _add_trust(finetune)
    finetune.set_defaults(command=_finetune)


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that came with the model (read it first)"
    )


def _finetune(options: argparse.Namespace) -> int:
    from cmbert.transfer.finetune.protocol import finetune, settings_of
    from cmbert.transfer.finetune.results import write_results
    from cmbert.transfer.finetune.tasks import find_data, find_task

    tasks = [find_task(name) for name in options.task]
    folders = [find_data(options.data, task, len(tasks)) for task in tasks]
    grids = [
        settings_of(task, options.grid, options.learning_rates, options.batch_sizes, options.epochs) for task in tasks
    ]
    backbone = _open_backbone(options.model, options.untrained, options.trust_remote_code)
    name = options.name or "-".join(Path(options.model).parts[-2:]).strip("-/.") + "-untrained" * options.untrained
    for task, folder, settings in zip(tasks, folders, grids, strict=True):
        finetune(
            backbone,
            task,
            folder,
            options.output,
            model_name=name,
            settings=settings,
            num_seeds=options.seeds,
            model_folder=Path(options.model),
        )
        write_results(options.output)
    print((options.output / "results.md").read_text(encoding="utf-8"))
    return 0


def _open_backbone(model: str, untrained: bool, trust: bool) -> "Backbone":
    """Open one of our models as it is, any other through transformers."""
    from cmbert.export.hf import is_export
    from cmbert.export.release import open_model
    from cmbert.transfer.finetune.backbone import our_backbone, their_backbone

    folder = Path(model)
    if folder.is_dir() and (is_export(folder) or not (folder / "config.json").is_file()):
        trained = open_model(folder)
        return our_backbone(trained.model, trained.tokenizer.directory, untrained=untrained)
    return their_backbone(model, untrained=untrained, trust=trust)


def add_embed_train(commands: argparse._SubParsersAction) -> None:
    """Add `embed-train`."""
    embed = commands.add_parser(
        "embed-train",
        help="fine-tune for sentence embeddings",
        description="Contrastive fine-tuning through sentence-transformers; Pearson and Spearman before and after.",
    )
    embed.add_argument(
        "--model", required=True, metavar="MODEL", help="run, checkpoint, exported folder, or Hugging Face encoder"
    )
    embed.add_argument(
        "--pairs",
        type=any_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="SimCLUE JSON lines, T2Ranking's folder",
    )
    embed.add_argument(
        "--eval", type=any_path, required=True, metavar="FILE", help="SimCLUE's test: pairs with label 0, 1"
    )
    embed.add_argument(
        "--output", type=utf8_path, required=True, metavar="DIR", help="folder to make; continued if there"
    )
    embed.add_argument("--sts", type=any_path, nargs="+", default=[], metavar="FILE", help="also graded pairs, 0 to 5")
    embed.add_argument("--nli", type=any_path, nargs="+", default=[], metavar="FILE", help="also inference (OCNLI)")
    embed.add_argument(
        "--negatives",
        choices=["none", "given", "mined"],
        default="given",
        help="hard negatives: none, those of triplets, or mined with the start model (default given)",
    )
    size = embed.add_mutually_exclusive_group()
    size.add_argument("--num-pairs", type=positive, metavar="N", help="train on N pairs, drawn by seed (default: all)")
    size.add_argument(
        "--scaling", type=integers, default=[], metavar="N,N", help="the curve: train a model with each N pairs"
    )
    embed.add_argument("--epochs", type=positive, default=1, metavar="N", help="passes over the pairs (default 1)")
    embed.add_argument("--batch-size", type=positive, default=128, metavar="N", help="pairs of a step (default 128)")
    embed.add_argument(
        "--mini-batch-size", type=positive, default=64, metavar="N", help="texts of a forward: memory (default 64)"
    )
    embed.add_argument(
        "--learning-rate", type=positive_number, default=1e-4, metavar="X", help="at its peak (default 1e-4)"
    )
    embed.add_argument("--max-length", type=positive, default=256, metavar="N", help="tokens of a text (default 256)")
    embed.add_argument("--seed", type=seed, default=0, metavar="N", help="draws pairs, orders batches (default 0)")
    _add_trust(embed)
    embed.set_defaults(command=_embed_train)


def _embed_train(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from cmbert.transfer.embedding.run import embed_train

    with TemporaryDirectory(prefix="cmbert-") as scratch:
        embed_train(_embedding_run(options, _encoder_folder(options.model, Path(scratch))))
    return 0


def _encoder_folder(model: str, scratch: Path) -> str:
    """Return `model`, or where it was exported to if it is a run or a checkpoint: that is no Hugging Face folder."""
    path = Path(model)
    if not path.is_dir() or (path / "config.json").is_file() or (path / "modules.json").is_file():
        return model
    from cmbert.export.release import export

    export(path, scratch / "export", "hf")
    return str(scratch / "export")


def _embedding_run(options: argparse.Namespace, folder: str) -> "EmbeddingRun":
    from cmbert.transfer.embedding.data import DataPaths
    from cmbert.transfer.embedding.run import EmbeddingRun
    from cmbert.transfer.embedding.train import Recipe

    return EmbeddingRun(
        model=folder,
        name=options.model,
        data=DataPaths(tuple(options.pairs), options.eval, tuple(options.sts), tuple(options.nli)),
        output=options.output,
        negatives=options.negatives,
        num_pairs=options.num_pairs,
        scaling=tuple(options.scaling),
        max_length=options.max_length,
        trust=options.trust_remote_code,
        recipe=Recipe(
            epochs=options.epochs,
            batch_size=options.batch_size,
            mini_batch_size=options.mini_batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        ),
    )
