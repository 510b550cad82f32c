"""`data_tools train-tokenizer`: byte-level BPE from text."""

import argparse
from pathlib import Path

from cmbert.cli_values import num_bytes
from data_tools.commands.shared import add_input, add_output, add_text_options, add_workers, text_options
from data_tools.defaults import TOKENIZER_SAMPLE_BYTES, VOCAB_SIZE


def add(commands: argparse._SubParsersAction) -> None:
    """Add `train-tokenizer`."""
    train = commands.add_parser(
        "train-tokenizer", help="byte-level BPE from text", description="Train a lossless byte-level BPE tokenizer."
    )
    add_input(train)
    add_output(train, "folder to make; AutoTokenizer.from_pretrained loads it")
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
        type=num_bytes,
        default=TOKENIZER_SAMPLE_BYTES,
        metavar="N",
        help=f"learn from at most N bytes of UTF-8, for example 50MB, of every source its share (default "
        f"{TOKENIZER_SAMPLE_BYTES}: 3 GB of memory)",
    )
    train.add_argument("--report", type=Path, metavar="FILE", help="also write a report: FILE.html, or FILE.json")
    train.add_argument(
        "--against",
        type=Path,
        metavar="VOCAB.txt",
        help="compare with a WordPiece vocabulary, one token a line, or a folder that holds vocab.txt",
    )
    add_text_options(train)
    add_workers(train, "processes that read")
    train.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train the tokenizer."""
    from data_tools.tokenizer.training import train_tokenizer

    train_tokenizer(
        options.inputs,
        options.output,
        vocab_size=options.vocab_size,
        boundaries=options.boundaries,
        sample_bytes=options.sample_size,
        report=options.report,
        against=options.against,
        **text_options(options),
        num_workers=options.workers,
    )
    return 0
