"""Held-out masked-token loss, pseudo-perplexity and accuracy on fixed rows and masks, also by position in the text.

Pseudo-perplexity here is exp(mean loss) with 15 % of the tokens hidden at once, one forward for all of them. It is not
that of Salazar et al. (arXiv 1910.14659), who hide one token at a time in as many forwards as tokens; a target
here also misses its hidden neighbours, so the figure is higher. It compares models, not with figures of that kind.
"""

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.batches import PackedBatch
from cmbert.data.reader import AssembledRows, RowReader, open_reader
from cmbert.errors import InputError
from cmbert.model.heads import MaskedLanguageModel
from cmbert.progress import Progress
from cmbert.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MASK_RATE = 0.15  # fixed, so that figures of different runs compare
HIDE_ALL = MaskConfig(mask_prob=1.0, random_prob=0.0)  # every chosen unit is shown as [MASK]
SEED = 0  # of rows and masks: every model is asked the same questions
BATCH_TOKENS = 8192  # positions in one forward
FIRST_POSITION_BUCKET = 64  # tokens; each further bucket ends at twice the position

Unit = Literal["word", "token"]


@dataclass(frozen=True)
class PositionScore:
    """Masked tokens whose position in their segment lies in [start, end)."""

    start: int
    end: int
    masked_tokens: int
    loss: float


@dataclass(frozen=True)
class Score:
    """What a model scores on held-out text; losses in nats per masked token."""

    heldout_loss: float
    pseudo_perplexity: float
    masked_accuracy: float
    masked_tokens: int
    context_tokens: int
    by_position: list[PositionScore]
    unit: Unit
    """What was hidden: whole words, or single tokens, whose word's other tokens may stay visible."""
    bits_per_character: float
    """Loss of the masked tokens over the characters in them: what to compare across tokenizers.

    A row's budget passes over words longer than what is left of it (at 64 tokens a word of 8 is asked a quarter as
    often as one of 1), and another tokenizer has other long words: words of each length weigh what all of them in the
    text do. For whole words only: their tokens are hidden together, so no tokenizer sees more of the answer than
    another; they are predicted independently, which charges the one that cuts words into more of them. For single
    tokens a tokenizer of longer tokens hides more of the text at once, and the figure does not compare.
    """

    def as_dict(self) -> dict:
        """Return plain values for JSON."""
        return asdict(self)


def evaluate(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    shards: Path,
    *,
    context: int,
    unit: Unit = "word",
    max_rows: int | None = None,
) -> Score:
    """Score `model` on every row of a held-out shard set, packed at `context` tokens, 15 % of whole units masked.

    Raises ShardError when the shards belong to another tokenizer.
    """
    reader = heldout_reader(tokenizer, shards, context, unit)
    num_rows = reader.blend.sources[0].num_rows
    if max_rows is not None and max_rows < num_rows:
        logger.info("%s: the first %s of %s rows are scored", shards, f"{max_rows:,}", f"{num_rows:,}")
        num_rows = max_rows
    batch_rows = max(1, BATCH_TOKENS // context)
    losses, positions, lengths, characters, num_correct = [], [], [], [], 0
    tokens_by_length = np.zeros(context + 1, np.int64)  # of units
    characters_of = tokenizer.token_character_lengths()
    device = next(model.parameters()).device
    progress = Progress(f"{shards.name} at {context:,}", num_rows, "rows")
    for first in range(0, num_rows, batch_rows):
        assembled = reader.assemble(range(first, min(first + batch_rows, num_rows)))
        length_T = unit_length_of_tokens(assembled, unit, tokenizer.vocabulary.is_ordinary)
        tokens_by_length += np.bincount(length_T, minlength=context + 1)
        batch = reader.mask_rows(assembled, MASK_RATE)
        loss_M, correct_M = score_batch(model, batch, device)
        losses.append(loss_M)
        num_correct += int(correct_M.sum())
        lengths.append(length_T[batch.masked_positions.numpy()])
        characters.append(characters_of[batch.targets.numpy()])
        positions.append(positions_in_segment(batch))
        progress.advance(min(batch_rows, num_rows - first))
    progress.close()
    loss_M, length_M, characters_M = map(np.concatenate, (losses, lengths, characters))
    if not characters_M.any():
        raise InputError(f"{shards}: too short to mask any of its tokens; give more text")
    mean = float(loss_M.mean())
    weight_M = tokens_by_length[length_M] / np.bincount(length_M)[length_M]
    return Score(
        heldout_loss=mean,
        pseudo_perplexity=math.exp(mean),
        masked_accuracy=num_correct / len(loss_M),
        masked_tokens=len(loss_M),
        context_tokens=context,
        by_position=score_positions(loss_M, np.concatenate(positions), context),
        unit=unit,
        bits_per_character=float(weight_M @ loss_M / (weight_M @ characters_M)) / math.log(2),
    )


def unit_length_of_tokens(rows: AssembledRows, unit: Unit, is_ordinary: np.ndarray) -> np.ndarray:
    """Return the tokens of the unit that each token is in, shape (T,), int64; 0 for special tokens."""
    ordinary = is_ordinary[rows.ids]
    if unit == "token":
        return ordinary.astype(np.int64)
    lengths = np.diff(np.flatnonzero(rows.unit_starts | ~ordinary), append=len(ordinary))
    return np.repeat(lengths, lengths) * ordinary


def place_model(model: MaskedLanguageModel) -> str:
    """Move a model to the GPU, in bf16 as it was trained and as fused attention needs it; without one it stays fp32.

    Returns where it is and in which precision, which every figure needs beside it.
    """
    if torch.cuda.is_available():
        model.to("cuda", torch.bfloat16)
        logger.info("scoring on %s, bf16", torch.cuda.get_device_name())
        return f"{torch.cuda.get_device_name()}, bf16"
    return "cpu, fp32"


def heldout_reader(tokenizer: Tokenizer, shards: Path, context: int, unit: Unit = "word") -> RowReader:
    """Return the reader of the fixed evaluation rows: every chosen unit is replaced by [MASK]."""
    data = DataConfig(
        tokenizer=str(tokenizer.directory), sources=(SourceConfig(path=str(shards)),), context_tokens=context
    )
    return open_reader(data, replace(HIDE_ALL, unit=unit), tokenizer, SEED)


@torch.inference_mode()
def score_batch(model: MaskedLanguageModel, batch: PackedBatch, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss (nats, float64) and hit (bool) of every masked token of a packed batch, shape (M,) each."""
    ids, bounds, masked_positions, targets, positions, longest = batch.to(device)
    logits_MV = model.logits(ids, bounds, masked_positions, positions, longest).float()
    loss_M = F.cross_entropy(logits_MV, targets, reduction="none")
    return loss_M.double().cpu().numpy(), (logits_MV.argmax(-1) == targets).cpu().numpy()


def positions_in_segment(batch: PackedBatch) -> np.ndarray:
    """Return how far into its segment each masked token stands, shape (M,), tokens."""
    bounds, masked = batch.cu_seqlens.numpy(), batch.masked_positions.numpy()
    return masked - bounds[np.searchsorted(bounds, masked, side="right") - 1]


def score_positions(losses: np.ndarray, positions: np.ndarray, context: int) -> list[PositionScore]:
    """Average the losses in position buckets that double in width; both (M,)."""
    buckets, start, end = [], 0, FIRST_POSITION_BUCKET
    while start < context:
        inside = (positions >= start) & (positions < end)
        if inside.any():
            buckets.append(PositionScore(start, min(end, context), int(inside.sum()), float(losses[inside].mean())))
        start, end = end, 2 * end
    return buckets


def print_score(score: Score, unigram: float | None, *, by_position: bool) -> None:
    """Print a score for people; `unigram` is the training tokens' unigram loss, if known."""
    print(f"held-out loss        {score.heldout_loss:.4f} nats per masked token ({score.masked_tokens:,} tokens)")
    if unigram is not None:
        print(f"unigram loss         {unigram:.4f} nats: the gap is {unigram - score.heldout_loss:.4f} nats")
    print(f"pseudo-perplexity    {score.pseudo_perplexity:,.1f}")
    print(f"masked accuracy      {100 * score.masked_accuracy:.2f} %")
    if by_position:
        print(f"{'position':>15}  {'masked tokens':>13}  {'loss':>7}  {'pseudo-perplexity':>17}")
        for bucket in score.by_position:
            place = f"{bucket.start:,}-{bucket.end - 1:,}"
            print(f"{place:>15}  {bucket.masked_tokens:>13,}  {bucket.loss:7.4f}  {math.exp(bucket.loss):17,.1f}")
