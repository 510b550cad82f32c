"""A measured step: real steps of a recipe's shapes by `cmbert train` on this machine, in a folder that then goes."""

import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cmbert.cluster.preemption import EXIT_STOPPED
from cmbert.config.batch import taken_micro_batch
from cmbert.config.deepspeed import deepspeed_path
from cmbert.config.load import write_resolved
from cmbert.config.schema import EvaluationConfig, Recipe, SourceConfig
from cmbert.data.shards.layout import is_shard_set
from cmbert.data.synthetic import write_synthetic
from cmbert.errors import ConfigError, InputError
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.machine import MEASURED_STEPS, Machine, Measured
from cmbert.runs.metrics import METRICS_FILE, read_metrics
from cmbert.schedule import Schedule
from cmbert.tokenizer import TOKENIZER_FILE

UNCOUNTED_STEPS = 3  # of them, the first: they compile, and allocate what later ones find (ours)
MOST_MICRO_BATCHES = 4  # of a measured step; a larger one is taken for so many times as long (ours)
STOP_SECONDS = 300.0  # then what has been measured is enough (ours)
HOPELESS_SECONDS = 900.0  # then not even a first step has ended (ours)
MADE_UP_TOKENS = 1_000_000  # most tokens of made-up documents (ours: written in a second)


def measure(recipe: Recipe, num_processes: int, machine: Machine) -> Measured:
    """Train a few steps of `recipe` with `num_processes` processes of this machine and return what they took.

    Nothing is written beside a temporary folder. Raises ConfigError or InputError, with the training's own words, when
    it cannot start or no step ends in time.
    """
    if num_processes > machine.most_processes:
        there = f"{machine.num_gpus} GPUs" if machine.num_gpus else f"{machine.num_cores} CPU cores and no GPU"
        raise ConfigError(
            f"--measure: {num_processes} processes, and this machine has {there}; name --gpus {machine.most_processes} "
            "at most, or leave --measure out"
        )
    with tempfile.TemporaryDirectory(prefix="cmbert-plan-") as name:
        folder = Path(name)
        small, made_up = _recipe_to_measure(recipe, num_processes, folder)
        write_resolved(small, folder / "recipe.toml")
        started = time.time()
        _train(folder, num_processes)
        metrics = Path(small.run_directory)
        records = read_metrics(metrics) if (metrics / METRICS_FILE).is_file() else []
    if not records:
        raise InputError(f"--measure: no step ended within {STOP_SECONDS:.0f} s; a smaller train.micro_batch_rows?")
    counted = records[UNCOUNTED_STEPS:] or records[-1:]
    first = records[0]
    start_seconds = first["time"] - started - first["step_seconds"] - first["data_wait_seconds"]
    return _extrapolate(recipe, small, num_processes, counted, max(start_seconds, 0.0), made_up)


def _recipe_to_measure(recipe: Recipe, num_processes: int, folder: Path) -> tuple[Recipe, bool]:
    """Return the recipe whose steps are measured, and whether its rows are made up.

    Fresh weights, no scores, no W&B; at most MOST_MICRO_BATCHES micro-batches a step, each as large as the recipe's.
    """
    train, data = recipe.train, recipe.data
    micro = taken_micro_batch(train, num_processes)
    rows = micro * num_processes * min(train.rows_per_step // (micro * num_processes), MOST_MICRO_BATCHES)
    made_up = not (Path(data.tokenizer) / TOKENIZER_FILE).is_file()
    made_up = made_up or not all(is_shard_set(Path(source.path)) for source in data.sources)
    if made_up:
        length = int(min(Assumptions().document_tokens, data.context_tokens))
        tokens = min(MADE_UP_TOKENS, max(MEASURED_STEPS * rows, 2 * data.shuffle_block_rows) * data.context_tokens)
        write_synthetic(folder, recipe.model.vocab_size, [length] * math.ceil(tokens / length))
        sources: tuple[SourceConfig, ...] = (SourceConfig(path=str(folder / "shards"), max_epochs=1e12),)
        data = replace(data, tokenizer=str(folder / "tokenizer"), sources=sources, changes=())
    else:
        sources = tuple(replace(source, path=_absolute(source.path)) for source in data.sources)
        data = replace(data, tokenizer=_absolute(data.tokenizer), sources=sources)
    deepspeed = str(deepspeed_path(train.deepspeed).absolute())
    steps = replace(
        train, rows_per_step=rows, micro_batch_rows=micro, ramp_start_rows=0, ramp_increment_rows=0, ramp_tokens=0,
        deepspeed=deepspeed, init_from="", init_tiling=False, wandb_project="", log_every_steps=1,
        checkpoint_every_steps=MEASURED_STEPS, ephemeral_every_steps=0, keep_every_tokens=0,
    )  # fmt: skip
    small = replace(recipe, run_directory=str(folder / "run"), data=data, train=steps, evaluation=EvaluationConfig())
    return small, made_up


def _absolute(path: str) -> str:
    """Return `path` as a recipe in another folder names it; what is no path stays."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _train(folder: Path, num_processes: int) -> None:
    """Train the steps, quietly. Raises as the training's last words say."""
    command = [sys.executable, "-m", "cmbert", "train", str(folder / "recipe.toml"), "--processes", str(num_processes)]
    command += ["--max-steps", str(MEASURED_STEPS), "--stop-after-seconds", str(STOP_SECONDS)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=HOPELESS_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"--measure: a step takes more than {HOPELESS_SECONDS / 60:.0f} minutes on this machine; lower "
            "train.micro_batch_rows, or plan for GPUs: --gpus N"
        ) from error
    if done.returncode in (0, EXIT_STOPPED):  # all steps, or as many as the time allowed
        return
    said = [line for line in (done.stderr + done.stdout).splitlines() if "cmbert: error: " in line]
    words = said[0].partition("cmbert: error: ")[2] if said else " ".join(done.stderr.split()[-20:])
    raise ConfigError(f"--measure: the training did not start: {words.replace(str(folder), 'measured')}")


def _extrapolate(recipe: Recipe, small: Recipe, num_processes: int, records: list[dict], start_seconds: float,
                 made_up: bool) -> Measured:  # fmt: skip
    """Return the stage's time: what an optimizer's step takes stays, the rest grows with the rows."""
    rows = small.train.rows_per_step
    optimizer = statistics.median(record["optimizer_seconds"] for record in records)
    forward = statistics.median(record["forward_seconds"] for record in records)
    whole = statistics.median(record["step_seconds"] + record["data_wait_seconds"] for record in records)
    row_seconds = (whole - optimizer) / rows
    schedule, evaluation = Schedule.of(recipe), recipe.evaluation
    step_seconds = row_seconds * recipe.train.rows_per_step + optimizer
    training = row_seconds * schedule.rows_before(schedule.num_steps) + optimizer * schedule.num_steps
    num_scores = math.ceil(schedule.num_steps / evaluation.every_steps) if evaluation.shards else 0
    num_scores *= 1 + len(evaluation.other_shards)
    return Measured(
        num_processes=num_processes,
        num_steps=len(records),
        step_seconds=step_seconds,
        tokens_per_second=recipe.train.rows_per_step * recipe.data.context_tokens / step_seconds,
        training_hours=training / 3600,
        heldout_hours=num_scores * evaluation.max_rows * forward / rows / 3600,
        start_seconds=start_seconds,
        memory_bytes=int(max(record["peak_memory_bytes"] or 0 for record in records)),
        made_up_rows=made_up,
    )
