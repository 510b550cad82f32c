"""Where quality breaks as the context grows: the same hidden words, read in segments of 512 tokens up to the longest.

Documents of at least `longest` tokens give their first `longest`. Their hidden words are drawn once; for every context
the text is cut into segments of so many tokens, each framed with [CLS] and [SEP], and the loss of the hidden tokens is
read. Words that a cut of the shortest context goes through are not scored at any context, so every context answers the
same questions about the same text, and only how far the model sees differs.

Rule: quality breaks at the first context whose loss lies above that of the best shorter one by more than 3 standard
errors of the difference over documents (8 documents or more: one-sided p < .01 by Student's t, each comparison) and by
at least 0.01 nats, 1 % of the pseudo-perplexity. Since the same words in the same text are compared, differences too
small to matter are found, too; the table shows them.

Shapes: N documents, C contexts, B position buckets, L tokens of the stretch, M hidden tokens of a document.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmbert.data.masking import mask_batch
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.sources import open_shards, prove_ids
from cmbert.errors import ConfigError, InputError
from cmbert.evaluate.domains import ABSENT
from cmbert.evaluate.pseudo_perplexity import HIDE_ALL, MASK_RATE, SEED, Unit
from cmbert.evaluate.table import markdown_table
from cmbert.model.heads import MaskedLanguageModel
from cmbert.progress import Progress
from cmbert.tokenizer import Tokenizer
from cmbert.vocabulary import Vocabulary

SHORTEST_CONTEXT = 512  # tokens
NUM_BUCKETS = 32  # of the position in the longest segment, equally wide
BREAK_ERRORS = 3.0  # standard errors
BREAK_LOSS = 0.01  # nats
LEAST_DOCUMENTS = 8  # for a verdict


@dataclass(frozen=True)
class ContextScore:
    """The loss at one context; nats per hidden token, means over documents."""

    context_tokens: int
    loss: float
    loss_error: float
    """Standard error over documents, which share nothing; nan of one document."""
    against: int | None
    """The best shorter context, tokens; None for the shortest."""
    difference: float
    """Loss here minus the loss there, on the same hidden tokens; 0 for the shortest."""
    difference_error: float
    """Its standard error over documents."""


@dataclass(frozen=True)
class PlaceScore:
    """Hidden tokens that stand at [start, end) of the document's stretch."""

    start: int
    end: int
    longest: float
    """Their loss where the whole stretch is one segment, so that this is also the position in the segment; nats."""
    longest_error: float
    """Its standard error over documents."""
    best: float
    """Their loss at the best of the other contexts; nats."""


@dataclass(frozen=True)
class Stress:
    """What the long-context check found."""

    documents: int
    hidden_tokens: int
    unit: Unit
    contexts: list[ContextScore]
    breaks_at: int | None
    """The first context, tokens, that is worse than a shorter one; None if none is, or with too few documents."""
    best_context: int
    """Of the contexts below the longest, the one of the least loss, tokens."""
    by_position: list[PlaceScore]
    trained_tokens: int | None
    """Row length of the training; None for an exported folder, which does not say."""
    max_length: int
    """Length that the model's rotary embedding was planned for, tokens."""

    def as_dict(self) -> dict:
        """Return plain values for JSON, which has no nan: None."""
        return asdict(self, dict_factory=_without_nan)


def _without_nan(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in items}


def contexts_up_to(longest: int) -> list[int]:
    """Return 512, 1,024, ... `longest`; ConfigError unless it is one of them beyond the first.

    Doubling makes every cut of a longer context one of each shorter context, too.
    """
    contexts = [SHORTEST_CONTEXT]
    while contexts[-1] < longest:
        contexts.append(2 * contexts[-1])
    if contexts[-1] != longest or len(contexts) < 2:
        raise ConfigError(
            f"--long-context: {longest} must be 512 doubled; try {max(contexts[-1], 2 * SHORTEST_CONTEXT)}"
        )
    return contexts


def stress(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    path: Path,
    *,
    longest: int,
    unit: Unit = "word",
    max_documents: int | None = None,
    trained_tokens: int | None = None,
) -> Stress:
    """Score the same hidden tokens of long documents at every context up to `longest`.

    A document whose hidden words are all cut, or that is one word, is left out. Raises ConfigError for a length that is
    not 512 doubled, ShardError as `open_shards` does, and InputError when no document is as long, or none is left.
    """
    contexts = contexts_up_to(longest)
    shards = open_shards(path, tokenizer)
    prove_ids(shards, tokenizer)
    documents = long_documents(shards, longest)[:max_documents].tolist()
    width = longest // NUM_BUCKETS
    losses, sums, counts = [], [], []  # of each document
    progress = Progress("long context", len(documents) * len(contexts) * longest, "tokens")
    for document in documents:
        ids_L, places_M, targets_M = hide_words(shards, document, longest, unit, tokenizer.vocabulary)
        if not len(places_M):
            continue
        counts.append(np.bincount(places_M // width, minlength=NUM_BUCKETS))
        for context in contexts:
            loss_M = score_segments(model, ids_L, places_M, targets_M, context, tokenizer.vocabulary)
            losses.append(loss_M.mean())
            sums.append(np.bincount(places_M // width, loss_M, NUM_BUCKETS))
            progress.advance(longest)
    progress.close()
    if not counts:
        raise InputError(
            f"{path}: no word of its documents of {longest} tokens can be hidden and scored: each is longer than 15 % "
            "of them, or cut; give other documents"
        )
    losses_NC = np.reshape(losses, (-1, len(contexts)))
    sums_NCB, counts_NB = np.reshape(sums, (-1, len(contexts), NUM_BUCKETS)), np.stack(counts)
    scores = compare(losses_NC, contexts)
    best = int(losses_NC[:, :-1].mean(0).argmin())
    return Stress(
        documents=len(counts),
        hidden_tokens=int(counts_NB.sum()),
        unit=unit,
        contexts=scores,
        breaks_at=find_break(scores, len(documents)),
        best_context=contexts[best],
        by_position=score_places(sums_NCB[:, -1], sums_NCB[:, best], counts_NB, width),
        trained_tokens=trained_tokens,
        max_length=model.config.max_length,
    )


def long_documents(shards: ShardSet, longest: int) -> np.ndarray:
    """Return the documents of at least `longest` tokens, (N,); InputError when there is none."""
    lengths = shards.document_lengths()
    found = np.flatnonzero(lengths >= longest)
    if not len(found):
        most = int(lengths.max())
        fitting = SHORTEST_CONTEXT << max(0, (most // SHORTEST_CONTEXT).bit_length() - 1)
        remedy = f"ask for --long-context {fitting}, or " if 2 * SHORTEST_CONTEXT <= fitting <= most else ""
        raise InputError(
            f"{shards.path}: its longest document has {most:,} tokens, --long-context {longest} needs one as long; "
            f"{remedy}give longer documents"
        )
    return found


def hide_words(
    shards: ShardSet, document: int, longest: int, unit: Unit, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide 15 % of the first `longest` tokens of a document, whole units as [MASK].

    Returns the ids (L,) with the masks in them, and places and ids (M,) of the hidden tokens to be scored: all but
    those of a unit that lies on both sides of a multiple of SHORTEST_CONTEXT, which some context would cut.
    """
    shards.check_documents(document, document + 1)
    tokens, unit_starts = shards.read(document, 0, longest)
    ids, bounds = tokens.astype(np.int64), np.array([0, longest])
    starts = unit_starts if unit == "word" else np.ones(longest, bool)
    places, targets = mask_batch(
        ids, unit_starts, bounds, rate=MASK_RATE, config=replace(HIDE_ALL, unit=unit), vocabulary=vocabulary, seed=SEED,
        indexes=[(0, 0, document)],
    )  # fmt: skip
    unit_of_token = starts.cumsum()
    cuts = np.arange(SHORTEST_CONTEXT, longest, SHORTEST_CONTEXT)
    cut_units = unit_of_token[cuts][~starts[cuts]]
    whole = ~np.isin(unit_of_token[places], cut_units)
    return ids, places[whole], targets[whole]


@torch.inference_mode()
def score_segments(
    model: MaskedLanguageModel, ids_L: np.ndarray, places_M: np.ndarray, targets_M: np.ndarray, context: int,
    vocabulary: Vocabulary,
) -> np.ndarray:  # fmt: skip
    """Return the loss (nats) of hidden tokens when the text is read in segments of `context` tokens, (M,) float64."""
    segments = np.pad(ids_L.reshape(-1, context), ((0, 0), (1, 1)))
    segments[:, 0], segments[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    bounds = np.arange(len(segments) + 1) * (context + 2)
    positions_M = places_M + 2 * (places_M // context) + 1
    device = next(model.parameters()).device
    ids, positions, targets = (
        torch.from_numpy(array).to(device) for array in (segments.ravel(), positions_M, targets_M)
    )
    _, _, loss_M = model(ids, torch.from_numpy(bounds.astype(np.int32)), positions, targets)
    return loss_M.double().cpu().numpy()


def compare(losses_NC: np.ndarray, contexts: Sequence[int]) -> list[ContextScore]:
    """Set each context's loss beside that of the best shorter one, paired by document."""
    means, scores = losses_NC.mean(0), []
    for column, context in enumerate(contexts):
        best = int(means[: column or 1].argmin())
        paired = losses_NC[:, column] - losses_NC[:, best]
        errors = standard_error(losses_NC[:, column]), standard_error(paired)
        against = contexts[best] if column else None
        scores.append(ContextScore(context, float(means[column]), errors[0], against, float(paired.mean()), errors[1]))
    return scores


def find_break(scores: Sequence[ContextScore], num_documents: int) -> int | None:
    """Return the first context that is worse than a shorter one by the rule at the top; None if there is none."""
    for score in scores if num_documents >= LEAST_DOCUMENTS else ():
        if score.against is not None and score.difference > max(BREAK_LOSS, BREAK_ERRORS * score.difference_error):
            return score.context_tokens
    return None


def standard_error(values_N: np.ndarray) -> float:
    """Return the standard error of the mean of independent values; nan of fewer than two."""
    return float(values_N.std(ddof=1) / math.sqrt(len(values_N))) if len(values_N) > 1 else math.nan


def score_places(longest_NB: np.ndarray, best_NB: np.ndarray, counts_NB: np.ndarray, width: int) -> list[PlaceScore]:
    """Average summed losses by position; a bucket without hidden tokens is left out, and a document without from it."""
    places = []
    for bucket in np.flatnonzero(counts_NB.sum(0)).tolist():
        here = counts_NB[:, bucket] > 0
        count_N = counts_NB[here, bucket]
        longest_N, best_N = longest_NB[here, bucket] / count_N, best_NB[here, bucket] / count_N
        start, end = bucket * width, (bucket + 1) * width
        places.append(PlaceScore(start, end, float(longest_N.mean()), standard_error(longest_N), float(best_N.mean())))
    return places


def print_stress(found: Stress) -> None:
    """Print the table and the verdict."""
    rows = []
    for score in found.contexts:
        row = [f"{score.context_tokens:,}", f"{score.loss:.4f} ± {score.loss_error:.4f}"]
        row.append(f"{math.exp(score.loss):,.1f}")
        if score.against is None:
            rows.append([*row, ABSENT, ABSENT])
        else:
            rows.append([*row, f"{score.difference:+.4f} ± {score.difference_error:.4f}", f"{score.against:,}"])
    header = ["context, tokens", "loss, nats", "pseudo-perplexity", "difference", "from the best shorter"]
    print(markdown_table(header, rows))
    trained = "" if found.trained_tokens is None else f"trained at {found.trained_tokens:,} tokens, "
    print(
        f"{found.hidden_tokens:,} hidden tokens ({found.unit}s) of {found.documents:,} documents, the same in every "
        f"row; ± one standard error over documents\n{trained}max_length {found.max_length:,}"
    )
    print(verdict(found))


def verdict(found: Stress) -> str:
    """Return where quality breaks, in a sentence."""
    if found.documents < LEAST_DOCUMENTS:
        return f"no verdict: {found.documents} documents, fewer than the {LEAST_DOCUMENTS} that the rule needs"
    if found.breaks_at is None:
        return (
            f"quality does not break up to {found.contexts[-1].context_tokens:,} tokens: no context is worse than a "
            f"shorter one by more than {BREAK_ERRORS:g} standard errors and {BREAK_LOSS:g} nats"
        )
    score = next(score for score in found.contexts if score.context_tokens == found.breaks_at)
    return (
        f"quality breaks at {found.breaks_at:,} tokens: {score.difference:+.4f} nats from {score.against:,} tokens, "
        f"more than {BREAK_ERRORS:g} standard errors and {BREAK_LOSS:g} nats"
    )
