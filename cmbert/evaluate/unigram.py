"""The unigram loss of a run: what a guess without any context loses. Counted once and kept in the run directory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import CheckpointError
from cmbert.files.json_types import read_as
from cmbert.files.whole import write_json

UNIGRAM_FILE = "unigram.json"
MOST_TOKENS = 1 << 28  # counted of a set, evenly spread, a second or two; 32,768 ids then cost < .0001 nats of bias
SAME_SHARE = 0.01  # of a blend: shares that have moved less leave the figure as it is (ours)


class Kept(TypedDict):
    """The file in the run directory."""

    shards: list[str]
    """Fingerprints of the shard sets."""
    shares: list[float]
    """Of each in what was read."""
    vocab_size: int
    unigram_loss: float
    """Nats per token."""


def unigram_loss(shard_sets: Sequence[ShardSet], amounts: Sequence[float], vocab_size: int) -> float:
    """Entropy of the training tokens' unigram distribution, nats: the least loss of a guess without context.

    amounts: how much of each set was trained on, in any unit: a blend may read a small set more often than a large one.
    """
    share = np.zeros(vocab_size)
    for shards, amount in zip(shard_sets, amounts, strict=True):
        if amount:
            counts = shards.token_counts(vocab_size, MOST_TOKENS)
            share += amount / sum(amounts) * counts / counts.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def unigram_of_run(run: Path, shard_sets: Sequence[ShardSet], amounts: Sequence[float], vocab_size: int) -> float:
    """Return the unigram loss of a run's training tokens: as the run directory keeps it, else counted and kept there.

    amounts: as `unigram_loss`. Raises CheckpointError for a malformed file, ShardError as reading shards does.
    """
    path, shards = run / UNIGRAM_FILE, [found.fingerprint for found in shard_sets]
    shares = [amount / sum(amounts) for amount in amounts]
    kept = read_as(path, Kept, error=CheckpointError, remedy="remove it, it is made again")
    if kept and (kept["shards"], kept["vocab_size"]) == (shards, vocab_size) and _alike(shares, kept["shares"]):
        return float(kept["unigram_loss"])
    loss = unigram_loss(shard_sets, amounts, vocab_size)
    if os.access(run, os.W_OK):  # somebody else's run is read, not written to
        write_json(path, Kept(shards=shards, shares=shares, vocab_size=vocab_size, unigram_loss=loss))
    return loss


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < SAME_SHARE for a, b in zip(one, other, strict=True))
