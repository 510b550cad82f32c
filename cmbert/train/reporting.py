"""What rank 0 writes and prints of every step."""

import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from cmbert.config.schema import Recipe
from cmbert.data.batches import StepFacts
from cmbert.data.ledger import LedgerWriter
from cmbert.data.reader import RowReader
from cmbert.files.lease import Lease
from cmbert.progress import duration
from cmbert.runs.metrics import MetricsWriter
from cmbert.schedule import Schedule
from cmbert.train.rates import compute_rates

logger = logging.getLogger(__name__)


@dataclass
class Reporter:
    """Metrics, ledger and log lines of the steps, from `first_step` to before `last_step`."""

    recipe: Recipe
    schedule: Schedule
    reader: RowReader
    metrics: MetricsWriter
    ledger: LedgerWriter
    lease: Lease
    first_step: int
    last_step: int
    world_size: int
    device: torch.device
    started: float = field(default_factory=time.perf_counter)
    notes: dict[str, float] = field(default_factory=dict)
    """Figures for the next record: what the last checkpoint cost."""

    def report(self, record: dict[str, Any], facts: StepFacts) -> None:
        """Record a step and, now and then, print it with the time left; nothing once the lease is lost.

        The files are other ones then, but TensorBoard and W&B would show the steps of both runs. Raises LeaseLostError
        rather than the OSError that comes of it: NFS calls a file stale that another machine has replaced.
        """
        if self.lease.is_lost:
            return
        try:
            self._record(record, facts)
        except OSError:
            self.lease.check()
            raise

    def _record(self, record: dict[str, Any], facts: StepFacts) -> None:
        self.ledger.write(record["step"], facts.ledger)
        record |= self.notes
        self.notes.clear()
        rows = self.schedule.rows(record["step"])
        record["first_row"], record["skipped_rows"] = facts.first_row, facts.first_row - rows.start
        record["source_tokens"] = facts.source_tokens
        record["unit_lengths"] = facts.unit_lengths
        record["straddle_rate"] = straddle_rate(self.reader, facts.source_tokens)
        seconds = record["step_seconds"] + record["data_wait_seconds"]
        record["tokens_per_second"] = record["real_tokens"] / seconds
        record |= compute_rates(
            self.recipe.model, facts.segment_lengths, record["masked_tokens"], seconds, self.world_size, self.device
        )
        record["fill_rate"] = record["real_tokens"] / (len(rows) * self.schedule.context_tokens)
        record["time"] = time.time()
        self.metrics.write(record)
        done = record["step"] + 1
        left, num_steps = self.time_left(done), self.schedule.num_steps
        if done % self.recipe.train.log_every_steps == 0 or done in (self.first_step + 1, self.last_step):
            logger.info(
                "step %d/%d  loss %.4f  accuracy %.3f  lr %.2e  mask %.3f  grad %.2f  %s tokens/s%s",
                done, num_steps, record["loss"], record["accuracy"], record["learning_rate"], record["mask_rate"],
                record["grad_norm"], f"{record['tokens_per_second']:,.0f}", left,
            )  # fmt: skip
        if "heldout_loss" in record:
            names = map(os.path.basename, self.recipe.evaluation.other_shards)
            others = zip(names, record.get("heldout_other_losses", []), strict=True)
            logger.info(
                "step %d/%d  held-out loss %.4f  accuracy %.3f%s (%.1f s)", done, num_steps,
                record["heldout_loss"], record["heldout_accuracy"],
                "".join(f"  {name} {loss:.4f}" for name, loss in others), record["heldout_seconds"],
            )  # fmt: skip

    def time_left(self, done: int) -> str:
        """Return how long the rows still to do take at the mean pace of those done here, the first step left out.

        The first step compiles what is compiled, and says nothing about the others.
        """
        first, now, last = map(self.schedule.rows_before, (self.first_step + 1, done, self.last_step))
        if now <= first:
            self.started = time.perf_counter()
            return ""
        seconds = (time.perf_counter() - self.started) / (now - first) * (last - now)
        return f"  {' '.join(duration(seconds))} left"

    def sync(self) -> None:
        """Put what was written on disk; before a checkpoint that relies on it. Raises OSError on a full disk."""
        self.metrics.sync()
        self.ledger.sync()

    def close(self) -> None:
        """Put everything on disk."""
        self.metrics.close()
        self.ledger.close()


def straddle_rate(reader: RowReader, source_tokens: list[int]) -> float | None:
    """Return the share of word boundaries inside a token, over the sources as a step mixed them; None if unknown."""
    rates = [source.shards.manifest.get("straddle", {}).get("rate") for source in reader.blend.sources]
    known = [(rate, tokens) for rate, tokens in zip(rates, source_tokens, strict=True) if rate is not None]
    total = sum(tokens for _, tokens in known)
    return sum(rate * tokens for rate, tokens in known) / total if total else None
