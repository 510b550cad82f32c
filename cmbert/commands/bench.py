"""`cmbert bench`: side-by-side benchmarks."""

import argparse
from pathlib import Path

from cmbert.cli_values import any_lengths, any_path, documents, lengths, tokens, utf8_path
from cmbert.commands.shared import add_overrides


def add(commands: argparse._SubParsersAction) -> None:
    """Add `bench`."""
    bench = commands.add_parser(
        "bench",
        help="side-by-side benchmarks",
        description="Time us and a peer in turn in one run, on the GPU if there is one; rows go to runs/bench/.",
    )
    kinds = bench.add_subparsers(required=True, metavar="inference|train|loader")
    for work, what in (("inference", "encode texts"), ("train", "training steps: forward, backward, optimizer")):
        _add_model(kinds.add_parser(work, help=what, description=f"Tokens per second and MFU: {what}."), work)
    loader = kinds.add_parser(
        "loader", help="shards to packed, whole-word-masked tensors, one core", description="The data loader's rate."
    )
    loader.add_argument("--data", type=any_path, required=True, metavar="DIR", help="shard set")
    loader.add_argument("--tokenizer", type=utf8_path, required=True, metavar="DIR", help="its tokenizer")
    loader.add_argument(
        "--lengths", type=lengths, default=[1024, 8192], metavar="N,N", help="row lengths, tokens (default 1024,8192)"
    )
    loader.add_argument(
        "--plan-documents",
        type=documents,
        default=0,
        metavar="N",
        help="also plan N synthetic documents (default 0: do not)",
    )
    loader.add_argument("--json", action="store_true", help="print the rows as JSON")
    loader.set_defaults(command=run, work="loader")


def _add_model(bench: argparse.ArgumentParser, work: str) -> None:
    bench.add_argument(
        "--model",
        type=utf8_path,
        nargs="+" if work == "inference" else 1,
        default=[Path("recipes/large/stage1.toml")],
        metavar="PATH",
        help="recipe, or folder that `cmbert export` wrote, whose shape is timed (default recipes/large/stage1.toml)"
        + ("; several, or any encoders of transformers among them, make one table" if work == "inference" else ""),
    )
    add_overrides(bench)
    bench.add_argument(
        "--lengths", type=any_lengths, default=[512, 8192], metavar="N,N", help="contexts, tokens (default 512,8192)"
    )
    bench.add_argument("--segments", type=any_lengths, default=[], metavar="N,N", help="also a batch of these, tokens")
    bench.add_argument(
        "--batch-tokens",
        type=tokens,
        default=32_768,
        metavar="N",
        help="real tokens in a batch, about (default 32768)",
    )
    bench.add_argument(
        "--against",
        choices=["hf", "all-global"],
        help="also, in turn, hf: transformers' ModernBERT of the same shape; all-global: the same shape with global "
        "attention in every layer",
    )
    bench.add_argument("--json", action="store_true", help="print the rows as JSON")
    bench.set_defaults(command=run, work=work)


def run(options: argparse.Namespace) -> int:
    """Time what is asked for; keep the rows and print them."""
    if options.work == "loader":
        from cmbert.bench.loader import bench_loader
        from cmbert.bench.rows import print_rows

        rows = bench_loader(options.data, options.tokenizer, options.lengths, options.plan_documents)
        print_rows(rows, as_json=options.json)
        return 0
    from cmbert.bench.memory import Request
    from cmbert.bench.models import bench_models

    request = Request(options.against, options.lengths, options.segments, options.batch_tokens)
    bench_models(options.work, options.model, options.overrides, request, as_json=options.json)
    return 0
