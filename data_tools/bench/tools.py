"""Encoding, tokenizers and memory, beside what one would write or use without these tools."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import trainers

from cmbert.tokenizer import Tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.bench.text import VOCAB_SIZE, Bench
from data_tools.bench.timing import Row, beside, peak_megabytes, where
from data_tools.encoding.encoders import batch_encoder, normalize
from data_tools.encoding.segment import segmenter
from data_tools.preprocessing.preprocess import preprocess
from data_tools.runner import local_workers
from data_tools.tokenizer.training import MIN_PAIR_COUNT, assembled, train_tokenizer

WORKER_COPIES = 16  # the text is repeated for timings of several processes, whose start takes a second


def bench_preprocess(bench: Bench) -> Iterator[Row]:
    """JSON lines to shards with word units, beside the straightforward pipeline."""
    slow = bench.fresh().with_suffix(".jsonl")
    slow.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in bench.slow_texts()), encoding="utf-8"
    )
    size = sum(len(text.encode("utf-8")) for text in bench.slow_texts())
    yield from beside(
        "preprocess",
        ("jieba.lcut + tokenizers.encode + append", size, lambda: straightforward(slow, bench.tokenizer)),
        (bench.num_bytes, lambda: preprocess([str(bench.corpus)], bench.tokenizer_directory, bench.fresh())),
    )
    large, cores = bench.write(WORKER_COPIES), len(os.sched_getaffinity(0))
    size = WORKER_COPIES * bench.num_bytes

    def by(count: int) -> Callable[[], None]:
        def run() -> None:
            with local_workers(count) as workers:
                preprocess([str(large)], bench.tokenizer_directory, bench.fresh(), workers=workers)

        return run

    def separately() -> None:
        command = [sys.executable, "-m", "data_tools", "preprocess", "--workers", "1", "--input", str(large)]
        given = ["--tokenizer", str(bench.tokenizer_directory), "--output"]
        running = [
            subprocess.Popen([*command, *given, str(bench.fresh())], stdout=subprocess.DEVNULL) for _ in range(cores)
        ]
        assert sum(process.wait() for process in running) == 0

    yield from beside(f"preprocess, {cores} workers", ("cmbert, 1 worker", size, by(1)), (size, by(cores)))
    yield from beside(  # what these cores give at most
        f"preprocess, {cores} workers",
        (f"cmbert, {cores} commands at once", cores * size, separately),
        (size, by(cores)),
    )


def straightforward(path: Path, tokenizer: Tokenizer) -> None:
    """What one writes first: per document, words by jieba, ids by tokenizers, word starts by their offsets."""
    import jieba

    jieba.setLogLevel("WARNING")
    ids, starts = [], []
    for line in open(path, encoding="utf-8"):
        text = json.loads(line)["text"]
        ends = {0}
        position = 0
        for word in jieba.lcut(text):
            position += len(word)
            ends.add(position)
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        ids.append(np.array(encoding.ids, dtype=np.uint16))
        starts.append(np.array([offset[0] in ends for offset in encoding.offsets]))
    np.concatenate(ids).tofile(path.with_suffix(".bin"))
    np.packbits(np.concatenate(starts), bitorder="little").tofile(path.with_suffix(".words"))


def bench_parts(bench: Bench) -> Iterator[Row]:
    """Words, and ids, each alone."""
    texts = [normalize(bench.tokenizer, text) for text in bench.texts]
    slow = bench.slow_texts()
    slow_size = sum(len(text.encode("utf-8")) for text in slow)
    exact, jieba, encoder = segmenter("rjieba"), segmenter("jieba"), batch_encoder(bench.tokenizer)
    yield from beside(
        "segment words",
        ("jieba", slow_size, lambda: [jieba.cut(text) for text in slow]),
        (bench.num_bytes, lambda: [exact.cut(text) for text in texts]),
    )
    yield from beside(
        "encode",
        (
            "tokenizers",
            slow_size,
            lambda: bench.tokenizer.backend.encode_batch_fast(slow, add_special_tokens=False),
        ),
        (bench.num_bytes, lambda: encoder.encode(texts)),
    )


def bench_train_tokenizer(bench: Bench) -> Iterator[Row]:
    """Learning merges, beside tokenizers' trainer on one thread."""

    def theirs() -> None:
        backend = assembled({token: index for index, token in enumerate(SPECIAL_TOKENS)}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            min_frequency=MIN_PAIR_COUNT,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(bench.texts, trainer)

    def ours() -> None:
        train_tokenizer([str(bench.corpus)], bench.fresh(), vocab_size=VOCAB_SIZE)

    size = bench.num_bytes
    yield from beside(f"train-tokenizer, {VOCAB_SIZE} ids", ("tokenizers", size, theirs), (size, ours))


def bench_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of every command at once and ten times the input; what has a budget gets one below the input."""
    budget = str(bench.num_bytes // 2)
    given = ["--tokenizer", str(bench.tokenizer_directory)]
    for copies in (1, 10):
        corpus, out = str(bench.write(copies)), bench.folder / f"memory{copies}"
        shards = str(out / "shards")
        commands = {
            "sample": ["sample", "--from", corpus, "--size", budget],
            "clean": ["clean", "--input", corpus, "--workers", "1"],
            "train-tokenizer": ["train-tokenizer", "--input", corpus, "--vocab-size", "4096", "--sample-size", budget],
            "preprocess": ["preprocess", "--input", corpus, *given, "--workers", "1", "--output", shards],
            "verify": ["verify", shards, *given, "--input", corpus],
            "inspect": ["inspect", shards],
            "merge": ["merge", shards, shards],
        }
        for name, command in commands.items():
            if name in ("sample", "clean", "train-tokenizer", "merge"):
                command = [*command, "--output", str(out / name)]
            megabytes = peak_megabytes(command)
            row = {"work": f"memory of {name}", "peer": "cmbert", "input_mb": round(copies * bench.num_bytes / 1e6, 1)}
            yield {**row, "peak_mb": megabytes, "where": where()}
