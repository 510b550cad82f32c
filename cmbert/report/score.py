"""The held-out score that heads the report: an eval.json where there is one, else the run's own of mid-training."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import readable_states
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ShardError
from cmbert.evaluate.unigram import unigram_of_run
from cmbert.html.charts import Stage

logger = logging.getLogger(__name__)


def score_of(line: Sequence[Stage]) -> tuple[dict[str, Any], str]:
    """Return held-out loss, accuracy and unigram loss of the last stage that has them, and where they come from."""
    for stage in reversed(line):
        score, after = dict(stage.evaluation), f"after {stage.name}"
        scored = np.flatnonzero(np.isfinite(stage["heldout_loss"]))
        if score.get("heldout_loss") is None and len(scored):
            last = scored[-1]
            after = f"{stage.name} in training, after step {int(stage['step'][last]) + 1:,}"
            accuracy = stage["heldout_accuracy"][last]
            score |= {"heldout_loss": stage["heldout_loss"][last]}
            score |= {"masked_accuracy": accuracy} if np.isfinite(accuracy) else {}
        if score:
            if score.get("unigram_loss") is None:
                score["unigram_loss"] = _unigram(stage)
            return score, after
    return {"unigram_loss": _unigram(line[-1])}, ""


def _unigram(stage: Stage) -> float | None:
    """Return the unigram loss of what a stage read; None where its shards are not to be had, or are others now."""
    paths = [source["path"] for source in stage.recipe.get("data", {}).get("sources", [])]
    vocab_size = stage.recipe.get("model", {}).get("vocab_size")
    if not paths or not isinstance(vocab_size, int) or not any(stage.source_tokens):
        return None
    try:
        shards = [ShardSet(path) for path in paths]
        fingerprints = [found.fingerprint for found in shards]
        checkpoint = find_checkpoint(stage.folder)
        states = readable_states([checkpoint] if checkpoint else [])  # a damaged one is no reason to draw nothing
        read = next((state.shard_fingerprints for state in states.values()), fingerprints)
        if fingerprints != read or not all(fingerprints):  # a Megatron pair has none until all of it was read: not here
            logger.info("%s: no unigram loss: its training shards are others now, or not proved", stage.name)
            return None
        return unigram_of_run(stage.folder, shards, stage.source_tokens, vocab_size)
    except ShardError as error:
        logger.info("%s: no unigram loss: %s", stage.name, error)
        return None
