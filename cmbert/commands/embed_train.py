"""`cmbert embed-train`: fine-tune for sentence embeddings."""

import argparse
from pathlib import Path

from cmbert.cli_values import any_path, integers, positive, positive_number, seed, utf8_path
from cmbert.commands.shared import add_trust_remote_code


def add(commands: argparse._SubParsersAction) -> None:
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
    add_trust_remote_code(embed)
    embed.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Score the start, train from it, score again; or do what is left of it."""
    from tempfile import TemporaryDirectory

    from cmbert.transfer.embedding.data import DataPaths
    from cmbert.transfer.embedding.run import EmbeddingRun, embed_train, encoder_folder
    from cmbert.transfer.embedding.train import ContrastiveSettings

    settings = ContrastiveSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        mini_batch_size=options.mini_batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    with TemporaryDirectory(prefix="cmbert-") as scratch:
        embedding_run = EmbeddingRun(
            model=encoder_folder(options.model, Path(scratch)),
            name=options.model,
            data=DataPaths(tuple(options.pairs), options.eval, tuple(options.sts), tuple(options.nli)),
            output=options.output,
            negatives=options.negatives,
            num_pairs=options.num_pairs,
            scaling=tuple(options.scaling),
            max_length=options.max_length,
            trust=options.trust_remote_code,
            settings=settings,
        )
        embed_train(embedding_run)
    return 0
