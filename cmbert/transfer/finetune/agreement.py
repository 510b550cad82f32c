"""Whether transformers answers as we do: a saved model on the dev split, through its pipeline where there is one.

Shapes: C classes or choices, P parts, L longest part, T their tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from cmbert.errors import CheckpointError
from cmbert.model.config_json import runs_our_code
from cmbert.transfer.finetune.items import Item
from cmbert.transfer.finetune.task_model import TaskModel, best_span
from cmbert.transfer.finetune.trial import by_tokens, where_to_train
from cmbert.transfer.tasks.task import Task

ALLOWED_SHARE = 1e-3
"""Largest accepted difference of a score, in standard deviations of the scores (ours): rounding is 1e-6 to 1e-5,
another pooling, padding that is read or a text cut elsewhere 1e-1 and more."""

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
    """Compare what transformers makes of the dev split with `model` (evaluation mode, fp32).

    Raises CheckpointError if a score differs by more than ALLOWED_SHARE.
    """
    device, _ = where_to_train()
    model.to(device)
    whole = [item for item in items if item.example.kept is None or all(part.whole for part in item.parts)]
    ours = scores_of(model, whole)
    if task.kind == "classification":
        program, theirs = "pipeline", list(_by_pipeline(folder, task, whole, device))
    else:
        program, theirs = "model", list(_by_model(folder, task, whole, device))
    spread = torch.cat([scores.flatten() for scores in ours]).std().item()
    differences = [(one - other).abs().max().item() for one, other in zip(ours, theirs, strict=True)]
    answers = [[answer_of(task, *pair) for pair in zip(whole, scores, strict=True)] for scores in (ours, theirs)]
    found = Agreement(
        program=f"transformers' {program}",
        examples=len(whole),
        left_out=len(items) - len(whole),
        error=max(differences) / spread if spread else math.nan,
        differing=sum(one != other for one, other in zip(*answers, strict=True)),
    )
    if not found.error <= ALLOWED_SHARE:
        raise CheckpointError(f"the saved model is not the tuned one: {found}; report it with this line")
    return found


@torch.no_grad()
def scores_of(model: TaskModel, items: Sequence[Item]) -> list[torch.Tensor]:
    """Return each example's scores on the CPU: (C,), or (T, outputs) of all tokens of its parts, one after another."""
    found = {}
    for some in by_tokens(items):
        rows = iter(model(some).cpu())
        for item in some:
            if task_scores_tokens(model.kind):
                found[id(item)] = torch.cat([next(rows)[: len(part.ids)] for part in item.parts])
            else:
                scores = next(rows)
                found[id(item)] = scores[: len(item.parts)] if model.kind == "choice" else scores
    return [found[id(item)] for item in items]


def task_scores_tokens(kind: str) -> bool:
    """Return whether a kind of task has scores of each token, not of a text."""
    return kind == "span"


def answer_of(task: Task, item: Item, scores: torch.Tensor) -> object:
    """Return what an example's scores answer."""
    if not task_scores_tokens(task.kind):
        return int(scores.argmax())
    return best_span(item, pad_sequence(list(scores.split([len(part.ids) for part in item.parts])), batch_first=True))


def _by_pipeline(folder: Path, task: Task, items: Sequence[Item], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the scores (C,) that transformers' pipeline gives the texts of each example, without a softmax."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    network = _open(AutoModelForSequenceClassification, folder)
    classify = pipeline("text-classification", network, tokenizer=AutoTokenizer.from_pretrained(folder), device=device)
    texts = [dict(zip(("text", "text_pair"), filter(None, item.example.parts[0]), strict=False)) for item in items]
    found = classify(texts, top_k=None, function_to_apply="none", truncation=True, batch_size=PIPELINE_BATCH)
    for scores in found:
        by_label: dict[str, float] = {score["label"]: score["score"] for score in cast("list[dict[str, Any]]", scores)}
        yield torch.tensor([by_label[label] for label in task.labels])


@torch.no_grad()
def _by_model(folder: Path, task: Task, items: Sequence[Item], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the scores that transformers' model of the task gives each example, read as the training read it."""
    import transformers

    made = {"choice": "AutoModelForMultipleChoice", "span": "AutoModelForQuestionAnswering"}[task.kind]
    network = _open(getattr(transformers, made), folder).to(device)
    for item in items:
        rows = [torch.tensor(part.ids, device=device) for part in item.parts]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        inputs = {"input_ids": pad_sequence(rows, batch_first=True), "attention_mask": mask}
        if task.kind == "choice":
            yield network(**{key: value[None] for key, value in inputs.items()}).logits[0].float().cpu()
        else:
            found = network(**inputs)
            scores_PL2 = torch.stack([found.start_logits, found.end_logits], 2).float().cpu()
            yield scores_PL2[mask.bool().cpu()]


def _open(auto_class: Any, folder: Path) -> Any:
    return auto_class.from_pretrained(folder, trust_remote_code=runs_our_code(folder), dtype=torch.float32).eval()
