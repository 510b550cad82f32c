"""What the parts share: where figures go, the sizes of a dry run, synthetic shards, trainings as processes."""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmbert.bench import throughput
from cmbert.bench.throughput import Workload, read_shape, workloads
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.data.synthetic import write_synthetic
from cmbert.environment import versions
from cmbert.errors import CmbertError
from cmbert.files.whole import write_json
from cmbert.model.heads import MaskedLanguageModel
from cmbert.runs.metrics import read_metrics
from cmbert.train import starting_weights

LARGE, QUICKSTART = "recipes/large/stage1.toml", "recipes/quickstart/stage1.toml"
LARGE_TRAIN = str(Path(__file__).with_name("large_train.py"))
FAILURES = (
    RuntimeError, CmbertError, ImportError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    subprocess.SubprocessError,
)  # fmt: skip
"""What ends a measurement and not its part: of code that meets a card for the first time, each tells something."""

WHY_CHARACTERS = 200  # of an error in the report; the log has all of it
POLL_SECONDS = 0.05
DRY_LEAST_SECONDS = 0.01  # of a round of the benchmarks
DRY_MODEL = {
    "model.num_layers": 3, "model.hidden_size": 64, "model.num_heads": 2, "model.intermediate_size": 64,
    "model.vocab_size": 512, "model.local_window": 16, "model.max_length": 64,
    "data.context_tokens": 32, "data.shuffle_block_rows": 32, "data.num_workers": 0,
}  # fmt: skip
DOCUMENTS, LONGEST_DOCUMENT, DRY_DOCUMENTS, DRY_LONGEST = 4000, 3000, 200, 100  # of the synthetic shards


class Measuring:
    """A part at work: its figures are on disk as soon as they are there."""

    def __init__(self, output: Path, *, dry_run: bool, seconds: float):
        self.output, self.dry_run, self.deadline = output, dry_run, time.monotonic() + seconds
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.entry: dict[str, Any] = {
            "part": output.stem, "dry_run": dry_run, "done": False, "machine": versions(self.device),
            "figures": {}, "details": {}, "missing": {}, "gpu_only": [],
        }  # fmt: skip
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{output.stem}-"))
        self.save()

    def save(self) -> None:
        """Write what is there so far."""
        write_json(self.output, self.entry)

    def put(self, **figures: float) -> None:
        """Add numbers."""
        self.entry["figures"] |= figures
        self.save()
        print(*(f"{name} {value:.6g}" for name, value in figures.items()), sep="\n", flush=True)

    def detail(self, **details: Any) -> None:
        """Add what is no figure: tables, names, curves."""
        self.entry["details"] |= details
        self.save()

    def lack(self, name: str, why: str) -> None:
        """Say that the measurement `name`, with which the keys of its figures begin, did not come about, and why."""
        self.entry["missing"][name] = why
        self.save()

    def measure(self, name: str, measurement: Callable[[], None], *, gpu_only: bool = False) -> None:
        """Run a measurement; if it fails, the others go on. gpu_only: it has no meaning on a CPU."""
        if gpu_only and self.dry_run:
            self.entry["gpu_only"].append(name)
            self.save()
            return
        try:
            measurement()
        except torch.OutOfMemoryError as error:
            self.lack(name, f"out of GPU memory ({str(error).partition('.')[2].strip()[:WHY_CHARACTERS]})")
            torch.cuda.empty_cache()
        except FAILURES as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            self.lack(name, f"{type(error).__name__}: {lines[0][:WHY_CHARACTERS]}")

    def left(self) -> float:
        """Return the seconds until this part is killed."""
        return self.deadline - time.monotonic()

    @property
    def tokens(self) -> int:
        """T of every batch, so that what is compiled is compiled once."""
        return 256 if self.dry_run else 32_768

    def context(self, tokens: int) -> int:
        """Return a context of the real run, or what stands for it in a dry run."""
        return {512: 32, 1024: 32, 8192: 64}[tokens] if self.dry_run else tokens

    def loads(self, *contexts: int) -> list[tuple[str, Workload]]:
        """Return ("512", segments of 512) and ("variable_512", segments of up to 512) of each context, T tokens."""
        found = []
        for context in contexts:
            fixed, variable = workloads([self.context(context)], [], self.tokens, self.context(context))
            found += [(str(context), fixed), (f"variable_{context}", exactly(variable, self.tokens))]
        return found

    def large(self) -> tuple[ModelConfig, KernelConfig]:
        """Return the large model, or what stands for it in a dry run, and its kernels."""
        return read_shape(Path(LARGE), overrides(DRY_MODEL if self.dry_run else {}))

    def settings(self, recipe: str, **more: Any) -> dict[str, Any]:
        """Return what makes a recipe run on synthetic shards, which are made here when they are first asked for."""
        vocab_size = DRY_MODEL["model.vocab_size"] if self.dry_run else read_shape(Path(recipe), [])[0].vocab_size
        folder = self.scratch / f"inputs{vocab_size}"
        if not folder.is_dir():
            count, longest = (DRY_DOCUMENTS, DRY_LONGEST) if self.dry_run else (DOCUMENTS, LONGEST_DOCUMENT)
            lengths = np.random.default_rng(0).integers(1, longest, count).tolist()
            write_synthetic(folder, vocab_size, lengths)
        return {
            **(DRY_MODEL if self.dry_run else {}),
            "data.tokenizer": folder / "tokenizer",
            "data.sources": f'[{{path = "{folder / "shards"}", max_epochs = 1e9}}]',
            "evaluation.shards": "",
            **more,
        }


def part(measurements: Callable[[Measuring], None]) -> int:
    """Run the measurements of a part, started with --output FILE --seconds S [--dry-run]; return its exit code."""
    parser = argparse.ArgumentParser(description="One part of recipes/gpu/run.py, which see.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    measuring = Measuring(options.output, dry_run=options.dry_run, seconds=options.seconds)
    quick_weights()
    if options.dry_run:
        throughput.LEAST_SECONDS = DRY_LEAST_SECONDS
    measurements(measuring)
    measuring.entry["done"] = True
    measuring.save()
    return 0


def quick_weights() -> None:
    """Let models keep the weights that torch draws for a new module: ours take 20 s more for large on one core."""

    def keep(model: MaskedLanguageModel, seed: int) -> None:
        with torch.no_grad():
            model.model.embeddings.tok_embeddings.weight.mul_(model.config.init_std)

    throughput.initialise = starting_weights.initialise = keep


def exactly(load: Workload, tokens: int) -> Workload:
    """Return segments like those of `load`, `tokens` in all: cut at the end, or its segments once more."""
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(load.lengths[len(lengths) % len(load.lengths)], left))
    return Workload(load.name, tuple(lengths))


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return key=value of each setting, as --set and `load_recipe` read them."""
    spelled = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    return [f"{key}={value}" for key, value in spelled.items()]


def set_options(settings: Mapping[str, Any]) -> list[str]:
    """Return --set options."""
    return [word for text in overrides(settings) for word in ("--set", text)]


class Training:
    """`cmbert train` as a process of this part's group, which ends with it."""

    def __init__(self, recipe: str, run: Path, settings: Mapping[str, Any], *options: str, program: tuple[str, ...]):
        self.run, self.log = run, run.with_suffix(".log")
        command = [sys.executable, *program, "train", recipe, "--set", f"run_directory={run}", *set_options(settings)]
        with open(self.log, "ab") as log:
            self.started = time.time()
            self.before = self.log.stat().st_size
            self.process = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """Return what it has said so far."""
        return self.log.read_bytes()[self.before :].decode(errors="replace")

    def wait_for_steps(self, count: int) -> list[dict]:
        """Wait until metrics.jsonl has `count` steps; return them. Raises RuntimeError if the training ends before."""
        while len(records := read_metrics(self.run)) < count:
            if self.process.poll() is not None and len(read_metrics(self.run)) < count:
                raise RuntimeError(f"cmbert train ended with exit code {self.process.returncode}: {last_line(self)}")
            time.sleep(POLL_SECONDS)
        return records

    def finish(self) -> list[dict]:
        """Wait for its end and return the steps. Raises RuntimeError if it failed."""
        if self.process.wait() != 0:
            raise RuntimeError(f"cmbert train ended with exit code {self.process.returncode}: {last_line(self)}")
        print(self.output())
        return read_metrics(self.run)

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        self.process.kill()
        self.process.wait()


def start_training(
    recipe: str, run: Path, settings: Mapping[str, Any], *options: str, program: tuple[str, ...] = ("-m", "cmbert")
) -> Training:
    """Start `cmbert train` on one rank. program: what stands for `cmbert`."""
    return Training(recipe, run, settings, *options, program=program)


def last_line(training: Training) -> str:
    """Return the last line that a training said, and print all of it."""
    said = training.output()
    print(said)
    lines = [line for line in said.splitlines() if re.search(r"\w", line)]
    return lines[-1] if lines else "without a word"
