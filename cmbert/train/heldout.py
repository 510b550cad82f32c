"""Held-out loss in mid-training: fixed rows and masks, the same whatever the number of ranks, as `cmbert eval` asks."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cmbert.cluster.distributed import Launch, sum_over_ranks
from cmbert.config.batch import taken_micro_batch
from cmbert.config.schema import Recipe
from cmbert.data.batches import PackedBatch
from cmbert.data.reader import RowReader
from cmbert.errors import InputError
from cmbert.evaluate.pseudo_perplexity import MASK_RATE, heldout_reader
from cmbert.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Heldout:
    """The first rows of evaluation.shards, given to the ranks in turn in batches of the training step's own shape."""

    def __init__(self, reader: RowReader, num_rows: int, micro_batch_rows: int, launch: Launch):
        self.reader, self.num_rows, self.micro_batch_rows, self.launch = reader, num_rows, micro_batch_rows, launch

    def batches(self) -> list[Sequence[int]]:
        """Return this rank's batches of rows. Every rank has as many, since ZeRO 3 gathers weights together."""
        starts = range(0, self.num_rows, self.micro_batch_rows)
        parts: list[Sequence[int]] = [range(s, min(s + self.micro_batch_rows, self.num_rows)) for s in starts]
        parts += [()] * (-len(parts) % self.launch.world_size)
        return parts[self.launch.rank :: self.launch.world_size]

    def read(self, rows: Sequence[int]) -> PackedBatch:
        """Return `rows` as a batch of the usual shape: filled up with row 0, in which nothing is asked."""
        filled = [*rows, *[0] * (self.micro_batch_rows - len(rows))]
        batch = self.reader.micro_batch(filled, MASK_RATE)
        asked = batch.masked_positions < len(rows) * self.reader.blend.sources[0].context
        return batch._replace(masked_positions=batch.masked_positions[asked], targets=batch.targets[asked])

    @torch.no_grad()
    def score(self, engine: Any, device: torch.device) -> dict[str, float]:
        """Return the mean loss (nats per masked token), the accuracy and the masked tokens, over all ranks."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        num_correct = torch.zeros((), dtype=torch.int64, device=device)
        num_masked = 0
        for rows in self.batches():
            batch = self.read(rows).to(device)
            loss, correct, _ = engine.module(*batch)
            loss_sum, num_correct, num_masked = loss_sum + loss, num_correct + correct, num_masked + len(batch.targets)
        loss, correct, masked = sum_over_ranks([loss_sum, num_correct, num_masked], device)
        return {"heldout_loss": loss / masked, "heldout_accuracy": correct / masked, "heldout_masked_tokens": masked}


def score_all(heldout: Sequence[Heldout], engine: Any, device: torch.device) -> dict[str, Any]:
    """Return the score of the first set, the loss of each other one (nats per masked token), and the seconds."""
    started = time.perf_counter()
    first, *others = (part.score(engine, device) for part in heldout)
    more = {"heldout_other_losses": [score["heldout_loss"] for score in others]} if others else {}
    return {**first, **more, "heldout_seconds": time.perf_counter() - started}


def open_heldout(recipe: Recipe, tokenizer: Tokenizer, launch: Launch) -> list[Heldout]:
    """Open evaluation.shards and evaluation.other_shards at the recipe's context; empty if it names none.

    Raises as `open_reader` does, and InputError when there is nothing to ask.
    """
    evaluation = recipe.evaluation
    sets = [("shards", evaluation.shards)] if evaluation.shards else []
    sets += [(f"other_shards[{number}]", path) for number, path in enumerate(evaluation.other_shards)]
    return [_open(f"evaluation.{key}", path, recipe, tokenizer, launch) for key, path in sets]


def _open(key: str, path: str, recipe: Recipe, tokenizer: Tokenizer, launch: Launch) -> Heldout:
    reader = heldout_reader(tokenizer, Path(path), recipe.data.context_tokens)
    there = reader.blend.sources[0].num_rows
    num_rows = min(recipe.evaluation.max_rows, there)
    if num_rows < there:
        logger.info("%s: evaluation.max_rows = %d of its %d rows are scored", path, num_rows, there)
    if not any(len(reader.micro_batch([row], MASK_RATE).targets) for row in range(num_rows)):
        raise InputError(
            f"{key}: {path}: its first {num_rows} rows are too short to mask any of "
            "their tokens; give more text or raise evaluation.max_rows"
        )
    return Heldout(reader, num_rows, taken_micro_batch(recipe.train, launch.world_size), launch)
