"""The commands that judge a model: eval | embed-train | bench. Each imports what it needs when it runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmbert.evaluate.embed_run import EmbeddingRun


def add_eval(commands: argparse._SubParsersAction) -> None:
    """Add `eval`."""
    evaluate = commands.add_parser(
        "eval", help="held-out loss of a model", description="Masked loss in nats, accuracy."
    )
    evaluate.add_argument("model", type=Path, help="run directory, checkpoint or exported folder")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="held-out shard set")
    evaluate.add_argument("--by-position", action="store_true", help="also by position in the piece, tokens")
    evaluate.add_argument("--context", type=int, metavar="N", help="row length, tokens (default: the run's, or 1024)")
    evaluate.add_argument("--max-rows", type=int, metavar="N", help="score only the first N rows (default: all)")
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    evaluate.set_defaults(command=_eval)


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add `bench`."""
    bench = commands.add_parser(
        "bench",
        help="side-by-side benchmarks",
        description="Time us and a peer in turn in one run, on the GPU if there is one; rows go to runs/bench/.",
    )
    kinds = bench.add_subparsers(required=True, metavar="inference|train|loader")
    for work, what in (("inference", "encode texts"), ("train", "training steps: forward, backward, optimizer")):
        _add_bench_model(kinds.add_parser(work, help=what, description=f"Tokens per second and MFU: {what}."), work)
    loader = kinds.add_parser(
        "loader", help="shards to packed, whole-word-masked tensors, one core", description="The data loader's rate."
    )
    loader.add_argument("--data", type=Path, required=True, metavar="DIR", help="shard set")
    loader.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="its tokenizer")
    loader.add_argument(
        "--lengths", type=_integers, default=[1024, 8192], metavar="N,N", help="row lengths, tokens (default 1024,8192)"
    )
    loader.add_argument(
        "--plan-documents", type=int, default=0, metavar="N", help="also plan N synthetic documents (default 0: do not)"
    )
    loader.add_argument("--json", action="store_true", help="print the rows as JSON")
    loader.set_defaults(command=_bench_loader)


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
        "--pairs", type=Path, nargs="+", required=True, metavar="FILE", help="SimCLUE JSON lines, T2Ranking's folder"
    )
    embed.add_argument("--eval", type=Path, required=True, metavar="FILE", help="SimCLUE's test: pairs with label 0, 1")
    embed.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make; continued if there")
    embed.add_argument("--sts", type=Path, nargs="+", default=[], metavar="FILE", help="also graded pairs, 0 to 5")
    embed.add_argument("--nli", type=Path, nargs="+", default=[], metavar="FILE", help="also inference (OCNLI)")
    embed.add_argument(
        "--negatives",
        choices=["none", "given", "mined"],
        default="given",
        help="hard negatives: none, those of triplets, or mined with the start model (default given)",
    )
    size = embed.add_mutually_exclusive_group()
    size.add_argument("--num-pairs", type=_positive, metavar="N", help="train on N pairs, drawn by seed (default: all)")
    size.add_argument(
        "--scaling", type=_integers, default=[], metavar="N,N", help="the curve: train a model with each N pairs"
    )
    embed.add_argument("--epochs", type=_positive, default=1, metavar="N", help="passes over the pairs (default 1)")
    embed.add_argument("--batch-size", type=_positive, default=128, metavar="N", help="pairs of a step (default 128)")
    embed.add_argument(
        "--mini-batch-size", type=_positive, default=64, metavar="N", help="texts of a forward: memory (default 64)"
    )
    embed.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="at its peak (default 1e-4)")
    embed.add_argument("--max-length", type=_positive, default=256, metavar="N", help="tokens of a text (default 256)")
    embed.add_argument("--seed", type=int, default=0, metavar="N", help="draws pairs, orders batches (default 0)")
    embed.set_defaults(command=_embed_train)


def _add_bench_model(bench: argparse.ArgumentParser, work: str) -> None:
    bench.add_argument(
        "--model",
        type=Path,
        default=Path("recipes/large/stage1.toml"),
        metavar="PATH",
        help="recipe, or folder that `cmbert export` wrote, whose shape is timed (default recipes/large/stage1.toml)",
    )
    bench.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override a key; repeatable"
    )
    bench.add_argument(
        "--lengths", type=_integers, default=[512, 8192], metavar="N,N", help="contexts, tokens (default 512,8192)"
    )
    bench.add_argument("--pieces", type=_integers, default=[], metavar="N,N", help="also a batch of these, tokens")
    bench.add_argument(
        "--batch-tokens", type=int, default=32_768, metavar="N", help="real tokens in a batch, about (default 32768)"
    )
    bench.add_argument("--against", choices=["hf"], help="hf: also transformers' ModernBERT of the same shape")
    bench.add_argument("--json", action="store_true", help="print the rows as JSON")
    bench.set_defaults(command=_bench_model, work=work)


def _eval(options: argparse.Namespace) -> int:
    from cmbert.evaluate.pseudo_perplexity import evaluate, print_score, unigram_loss
    from cmbert.files import write_json
    from cmbert.train.release import open_model

    trained = open_model(options.model)
    context = options.context or trained.context_tokens
    score = evaluate(trained.model, trained.tokenizer, options.data, context=context, max_rows=options.max_rows)
    unigram = unigram_loss(trained.training_shards, trained.tokenizer.vocab_size) if trained.training_shards else None
    print_score(score, unigram, by_position=options.by_position)
    if options.output:
        write_json(options.output, {"model": str(options.model), "unigram_loss": unigram, **score.as_dict()})
    return 0


def _embed_train(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from cmbert.evaluate.embed_run import embed_train

    with TemporaryDirectory(prefix="cmbert-") as scratch:
        embed_train(_embedding_run(options, _encoder_folder(options.model, Path(scratch))))
    return 0


def _encoder_folder(model: str, scratch: Path) -> str:
    """Return `model`, or where it was exported to if it is a run or a checkpoint: that is no Hugging Face folder."""
    path = Path(model)
    if not path.is_dir() or (path / "config.json").is_file() or (path / "modules.json").is_file():
        return model
    from cmbert.train.release import export

    export(path, scratch / "export", "hf")
    return str(scratch / "export")


def _embedding_run(options: argparse.Namespace, folder: str) -> "EmbeddingRun":
    from cmbert.evaluate.embed_data import DataPaths
    from cmbert.evaluate.embed_run import EmbeddingRun
    from cmbert.evaluate.embed_train import Recipe

    return EmbeddingRun(
        model=folder,
        name=options.model,
        data=DataPaths(tuple(options.pairs), options.eval, tuple(options.sts), tuple(options.nli)),
        output=options.output,
        negatives=options.negatives,
        num_pairs=options.num_pairs,
        scaling=tuple(options.scaling),
        max_length=options.max_length,
        recipe=Recipe(
            epochs=options.epochs,
            batch_size=options.batch_size,
            mini_batch_size=options.mini_batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        ),
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: must be whole numbers with commas, for example 512,8192") from error


def _bench_loader(options: argparse.Namespace) -> int:
    from cmbert.evaluate.benchmark import print_rows
    from cmbert.evaluate.loader_throughput import bench_loader

    rows = bench_loader(options.data, options.tokenizer, options.lengths, options.plan_documents)
    print_rows(rows, as_json=options.json)
    return 0


def _bench_model(options: argparse.Namespace) -> int:
    from cmbert.evaluate.benchmark import keep_rows, print_rows
    from cmbert.evaluate.throughput import bench_throughput, read_shape, workloads

    model, kernels = read_shape(options.model, options.overrides)
    loads = workloads(options.lengths, options.pieces, options.batch_tokens, model.max_length)
    rows = []
    for row in bench_throughput(options.work, model, kernels, loads, against_transformers=options.against == "hf"):
        rows.append(row)
        if not options.json:
            print_rows([row], as_json=False)
    keep_rows(options.work, rows)
    if options.json:
        print_rows(rows, as_json=True)
    return 0
