"""A run's directory as training leaves it, made here."""

import json
from pathlib import Path

RECIPE = """
[model]
num_layers = 4
vocab_size = 8192
[data]
context_tokens = {context}
[train]
rows_per_step = 8
deepspeed = "/home/somebody/zero1.json"
init_from = "{init_from}"
"""
EVALUATION = {
    "unigram_loss": 7.75,
    "heldout_loss": 6.6123,
    "masked_accuracy": 0.131,
    "by_position": [
        {"start": 0, "end": 64, "masked_tokens": 9120, "loss": 6.92},
        {"start": 64, "end": 128, "masked_tokens": 6117, "loss": 6.431},
    ],
}


def make_run(run: Path, *, num_steps: int = 40, context: int = 128, init_from: str | Path = "") -> Path:
    """Write a run directory as training leaves it."""
    run.mkdir(parents=True)
    (run / "resolved.toml").write_text(RECIPE.format(context=context, init_from=init_from), encoding="utf-8")
    versions = {"torch": "2.13.0", "apex": None}
    environment = {"git_commit": "0123456789abcdef", "python": "3.11.9", "host": "node-of-ours", "versions": versions}
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    tokens = 8 * context
    records = [
        {
            "step": step,
            "tokens": (step + 1) * tokens,
            "loss": 9.0 - 2.0 * step / num_steps,
            "accuracy": 0.1,
            "learning_rate": 2e-3,
            "mask_rate": 0.3,
            "masked_tokens": 0.2 * tokens,
            "real_tokens": 0.8 * tokens,
            "realised_mask_rate": 0.25,
            "grad_norm": 1.0,
            "step_seconds": 0.4,
            "data_wait_seconds": 0.1,
            "tokens_per_second": 1234.0,
            "fill_rate": 0.8,
            "time": 1.79e9 + step,
            "skipped_rows": 3,
            "source_tokens": [700, 100],
            "unit_lengths": [50, 30, 10, 5, 2, 1, 1, 1],
        }
        for step in range(num_steps)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return run


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def add_numbers(run: Path, first_step: int = 0, **numbers: object) -> None:
    """Give the records from `first_step` on what newer runs record, too."""
    times = {"forward_seconds": 0.1, "backward_seconds": 0.2, "optimizer_seconds": 0.05, "communication_seconds": 0.03}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records[first_step:]:
        record |= {**times, "peak_memory_bytes": 12_340_000_000, "flops_per_second": 1e12, **numbers}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
