"""Whether transformers answers as we do: a saved model on the dev split, through its pipeline where there is one.

Shapes: C outputs or choices, P parts, L longest part, T their tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cmbert.errors import CheckpointError
from cmbert.export.gate import padded
from cmbert.model.config_json import runs_our_code
from cmbert.transfer.finetune.items import Item
from cmbert.transfer.finetune.task_model import HEADS, OF_TOKENS, TaskModel
from cmbert.transfer.finetune.trial import by_tokens
from cmbert.transfer.tasks.fields import Entity
from cmbert.transfer.tasks.scores import Found
from cmbert.transfer.tasks.task import Task

ALLOWED_SHARE = 1e-3
"""Largest accepted difference of a score, in standard deviations of the scores (ours): rounding is 1e-6 to 1e-5,
another pooling, padding that is read or a text cut elsewhere 1e-1 and more."""

MOST_EXAMPLES = 2_000  # that are compared (ours): minutes on a CPU for a large model
PIPELINE_BATCH = 16  # texts that a pipeline pads together


@dataclass(frozen=True)
class Agreement:
    """How near two programs' answers to the same examples are."""

    program: str
    examples: int
    left_out: int
    """Examples that are not compared: what was cut away of them is not at their end."""
    error: float
    """Largest difference of a score, in standard deviations of the scores."""
    differing: int
    """Answers that differ."""

    def __str__(self) -> str:
        left = f", {self.left_out:,} left out" if self.left_out else ""
        return (
            f"{self.program} gives our answers on {self.examples - self.differing:,} of {self.examples:,} dev "
            f"examples{left}; scores differ by {self.error:.1e} of their deviation at most"
        )


def prove_answers(folder: Path, model: TaskModel, task: Task, items: Sequence[Item]) -> Agreement:
    """Compare what transformers makes of the dev split with `model` (evaluation mode, fp32), both on the CPU.

    Of a larger split MOST_EXAMPLES are compared, evenly spaced. Raises CheckpointError if a score differs by more than
    ALLOWED_SHARE, or an entity by more than rounding can do.
    """
    whole = [item for item in items if item.example.kept is None or all(part.whole for part in item.parts)]
    left_out = len(items) - len(whole)
    if len(whole) > MOST_EXAMPLES:
        whole = [whole[place * len(whole) // MOST_EXAMPLES] for place in range(MOST_EXAMPLES)]
    ours = scores_of(model, whole)
    network = _open(folder, task)
    if HEADS[task.kind] == "ForSequenceClassification":
        theirs = list(_by_pipeline(network, folder, task, whole))
    else:
        theirs = list(_by_model(network, task, whole))
    every = torch.cat([scores.flatten() for scores in ours])
    spread = every.std(correction=0).item() or every.abs().max().item() or 1.0  # of one number there is no deviation
    error = max((one - other).abs().max().item() for one, other in zip(ours, theirs, strict=True))
    said = [_read(model, *pair) for pair in zip(whole, ours, strict=True)]
    if task.kind == "tokens":
        theirs_said = list(_entities_by_pipeline(network, folder, whole))
    else:
        theirs_said = [_read(model, *pair) for pair in zip(whole, theirs, strict=True)]
    differing = [place for place, pair in enumerate(zip(said, theirs_said, strict=True)) if len(set(pair)) > 1]
    found = Agreement(
        program=f"transformers' {'model' if task.kind in ('choice', 'span') else 'pipeline'}",
        examples=len(whole),
        left_out=left_out,
        error=error / spread,
        differing=len(differing),
    )
    clear = [place for place in differing if task.kind == "tokens" and _margin(ours[place]) > 2 * error]
    if clear or not found.error <= ALLOWED_SHARE:
        raise CheckpointError(f"the saved model is not the tuned one: {found}; report it with this line")
    return found


@torch.no_grad()
def scores_of(model: TaskModel, items: Sequence[Item]) -> list[torch.Tensor]:
    """Return each example's scores: (C,), or (T, outputs) of all tokens of its parts, one after another."""
    found = {}
    for some in by_tokens(items):
        rows = iter(model(some))
        for item in some:
            if model.kind in OF_TOKENS:
                found[id(item)] = torch.cat([next(rows)[: len(part.ids)] for part in item.parts])
            else:
                scores = next(rows)
                found[id(item)] = scores[: len(item.parts)] if model.kind == "choice" else scores
    return [found[id(item)] for item in items]


def _read(model: TaskModel, item: Item, scores: torch.Tensor) -> Found:
    """Return what the scores of one example, as of `scores_of`, answer, but for numbers that rounding may change."""
    if model.kind in OF_TOKENS:
        scores = pad_sequence(list(scores.split([len(part.ids) for part in item.parts])), batch_first=True)
        (found,) = model.read([item], scores)
    else:
        (found,) = model.read([item], scores[None])
    return found._replace(score=0.0, value=0.0)


def _margin(scores_TC: torch.Tensor) -> float:
    """Return by how much the best score of a token is above the second, where that is least."""
    best_T2 = scores_TC.topk(2).values
    return float((best_T2[:, 0] - best_T2[:, 1]).min())


def _by_pipeline(network: Any, folder: Path, task: Task, items: Sequence[Item]) -> Iterator[torch.Tensor]:
    """Yield the scores (C,) that transformers' pipeline gives the texts of each example, without a softmax."""
    classify = _pipeline("text-classification", network, folder)
    texts = [dict(zip(("text", "text_pair"), filter(None, item.example.parts[0]), strict=False)) for item in items]
    for scores in classify(texts, top_k=None, function_to_apply="none", truncation=True, batch_size=PIPELINE_BATCH):
        by_label = {score["label"]: score["score"] for score in scores}
        yield torch.tensor([by_label[label] for label in task.outputs])


def _entities_by_pipeline(network: Any, folder: Path, items: Sequence[Item]) -> Iterator[Found]:
    """Yield the entities that transformers' pipeline finds in the text of each example."""
    find = _pipeline("token-classification", network, folder)
    texts = [item.example.parts[0][0] for item in items]
    for entities in find(texts, aggregation_strategy="simple", batch_size=PIPELINE_BATCH):
        found = tuple(Entity(entity["start"], entity["end"], entity["entity_group"]) for entity in entities)
        yield Found(entities=found, value=0.0)


@torch.no_grad()
def _by_model(network: Any, task: Task, items: Sequence[Item]) -> Iterator[torch.Tensor]:
    """Yield the scores that transformers' model of the task gives each example, read as the training read it."""
    for item in items:
        ids_PL, mask_PL = padded([torch.tensor(part.ids) for part in item.parts], network.config.pad_token_id, "right")
        inputs = {"input_ids": ids_PL, "attention_mask": mask_PL}
        if task.kind == "choice":
            yield network(**{key: value[None] for key, value in inputs.items()}).logits[0]
            continue
        found = network(**inputs)
        scores = torch.stack([found.start_logits, found.end_logits], 2) if task.kind == "span" else found.logits
        yield scores[mask_PL.bool()]


def _pipeline(name: str, network: Any, folder: Path) -> Any:
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return pipeline(name, network, tokenizer=tokenizer, device="cpu")  # type: ignore[call-overload]


def _open(folder: Path, task: Task) -> Any:
    import transformers

    made = getattr(transformers, f"AutoModel{HEADS[task.kind]}")
    return made.from_pretrained(folder, trust_remote_code=runs_our_code(folder), dtype=torch.float32).eval()
