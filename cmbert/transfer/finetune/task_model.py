"""An encoder with the head of a task, and what it makes of a batch of examples.

The head is stock ModernBERT's, for every encoder: dense, GELU, norm, dropout and a linear layer, on the mean of a
text's hidden states (classes, numbers and choices) or on each token's (spans and tags). Shapes: E examples, P parts, T
tokens, L longest part, D width, C outputs or choices.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cmbert.seeding import integer_seed
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.finetune.items import Item
from cmbert.transfer.tasks.scores import Found
from cmbert.transfer.tasks.tags import NO_TAG, entities_of
from cmbert.transfer.tasks.task import Kind, Task

DROPOUT = 0.1  # before the linear layer (ours; the encoders keep their own)
HEAD_STD = 0.02  # of the head's fresh weights, as BERT's
OF_TOKENS: tuple[Kind, ...] = ("span", "tokens")  # kinds of tasks that score every token
HEADS: dict[Kind, str] = {
    "classification": "ForSequenceClassification",
    "multilabel": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "choice": "ForMultipleChoice",
    "span": "ForQuestionAnswering",
}
"""The class of transformers that a kind of task is of, without its family's name."""
ANSWER_TOKENS = 50  # longest span that is considered (ours; CMRC's answers are shorter, bar a few in a thousand)


class FreshHead(nn.Module):
    """dense, GELU, norm of stock ModernBERT, for an encoder that brings no such head."""

    def __init__(self, hidden_size: int, generator: torch.Generator):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, bias=False)
        with torch.no_grad():
            self.dense.weight.normal_(0.0, HEAD_STD, generator=generator)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P or T, D) -> the same."""
        normed: torch.Tensor = self.norm(F.gelu(self.dense(hidden)))
        return normed


class TaskModel(nn.Module):
    """Encoder, head and a linear layer whose fresh weights depend on the seed alone.

    `head` and `classifier` have the names and shapes of transformers' ModernBertFor... classes. Ours starts from the
    head that learned to guess masked tokens, as those do when they open a masked language model; others' is fresh.
    """

    def __init__(self, backbone: Backbone, task: Task, seed: int):
        super().__init__()
        self.backbone, self.kind, self.outputs = backbone, task.kind, task.outputs
        self.mean, self.deviation = 0.0, 1.0
        generator = torch.Generator().manual_seed(integer_seed(seed, "finetune-head"))
        self.classifier = nn.Linear(backbone.hidden_size, len(task.outputs))
        with torch.no_grad():
            self.classifier.weight.normal_(0.0, HEAD_STD, generator=generator)
            self.classifier.bias.zero_()
        self.head = copy.deepcopy(backbone.head) or FreshHead(backbone.hidden_size, generator)

    def measure(self, items: Sequence[Item]) -> None:
        """Take the unit of the numbers to learn: of a regression's training set the mean and the deviation."""
        values = [item.example.value for item in items if item.example.value is not None]
        if values:
            self.mean, self.deviation = float(np.mean(values)), float(np.std(values))

    @torch.no_grad()
    def fold_unit(self) -> None:
        """Put the unit into the classifier, which says the file's numbers then; in fp32, for bf16 has few digits."""
        if self.kind == "regression":
            self.classifier.float()
            self.classifier.weight.mul_(self.deviation)
            self.classifier.bias.mul_(self.deviation).add_(self.mean)
            self.mean, self.deviation = 0.0, 1.0

    def _classify(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P or T, D) -> scores in fp32, (P or T, outputs)."""
        hidden = F.dropout(self.head(hidden), DROPOUT, self.training)
        scores: torch.Tensor = self.classifier(hidden.to(self.classifier.weight.dtype))
        return scores.float()

    def forward(self, items: Sequence[Item]) -> torch.Tensor:
        """Scores: (E, C) of a text or of its choices, (P, L, C) of tokens; -inf where there is nothing to choose."""
        parts = [part for item in items for part in item.parts]
        device = self.classifier.weight.device
        lengths = [len(part.ids) for part in parts]
        ids = torch.tensor([index for part in parts for index in part.ids], device=device)
        types = torch.tensor([index for part in parts for index in part.type_ids], device=device)
        hidden_TD = self.backbone(ids, types, lengths)
        if self.kind in OF_TOKENS:
            scores_TC = self._classify(hidden_TD)
            return nn.utils.rnn.pad_sequence(scores_TC.split(lengths), batch_first=True, padding_value=-torch.inf)
        scores_PC = self._classify(mean_by_part(hidden_TD, lengths))
        if self.kind != "choice":
            return scores_PC
        choices = [len(item.parts) for item in items]
        return nn.utils.rnn.pad_sequence(scores_PC[:, 0].split(choices), batch_first=True, padding_value=-torch.inf)

    def num_targets(self, items: Sequence[Item]) -> int:
        """Return over how many targets a mean of losses runs: the examples, their yes or no to each of several labels,
        their tokens, or starts and ends of every part.
        """
        if self.kind == "span":
            return sum(2 * len(item.spans) for item in items)
        if self.kind == "tokens":
            return max(1, sum(tag != NO_TAG for item in items for tag in item.tags))
        return len(items) * (len(self.outputs) if self.kind == "multilabel" else 1)

    def loss_sum(self, items: Sequence[Item]) -> torch.Tensor:
        """Summed over the targets, so that sums of parts are the sum of the whole: cross-entropy, nats; of numbers the
        squared error in deviations.
        """
        scores = self(items)
        device = scores.device
        if self.kind == "multilabel":
            targets_EC = torch.zeros_like(scores)
            for row, item in zip(targets_EC, items, strict=True):
                row[list(item.example.labels or ())] = 1
            return F.binary_cross_entropy_with_logits(scores, targets_EC, reduction="sum")
        if self.kind == "regression":
            values_E = torch.tensor([item.example.value for item in items], dtype=torch.float64)
            targets_E = ((values_E - self.mean) / self.deviation).float().to(device)
            return F.mse_loss(scores[:, 0], targets_E, reduction="sum")
        if self.kind == "tokens":
            tags_T = torch.tensor([tag for item in items for tag in item.tags], device=device)
            scores_TC = torch.cat([row[: len(item.tags)] for row, item in zip(scores, items, strict=True)])
            return F.cross_entropy(scores_TC, tags_T, ignore_index=NO_TAG, reduction="sum")
        if self.kind == "span":
            spans_P2 = torch.tensor([span for item in items for span in item.spans], device=device)
            scores_SL = scores.transpose(1, 2).flatten(0, 1)  # S = 2 P starts and ends
            return F.cross_entropy(scores_SL, spans_P2.flatten(), reduction="sum")
        labels_E = torch.tensor([item.example.label for item in items], device=device)
        return F.cross_entropy(scores, labels_E, reduction="sum")

    @torch.no_grad()
    def answer(self, items: Sequence[Item]) -> list[Found]:
        """Return the best class, choice or span of each example; its labels, its number, its entities."""
        return self.read(items, self(items))

    def read(self, items: Sequence[Item], scores: torch.Tensor) -> list[Found]:
        """Return what `scores` answer, the model's own or another program's of the same examples: as of `forward`."""
        if self.kind == "multilabel":
            likely = (scores > 0).tolist()  # a probability above .5
            return [Found(labels=tuple(place for place, yes in enumerate(row) if yes)) for row in likely]
        if self.kind == "regression":
            return [Found(value=value * self.deviation + self.mean) for value in scores[:, 0].tolist()]
        if self.kind == "tokens":
            return [self._entities(item, tags) for item, tags in zip(items, scores.argmax(2).tolist(), strict=True)]
        if self.kind != "span":
            return [Found(index) for index in scores.argmax(1).tolist()]
        found, first = [], 0
        for item in items:
            last = first + len(item.parts)
            found.append(best_span(item, scores[first:last]))
            first = last
        return found

    def _entities(self, item: Item, tags: Sequence[int]) -> Found:
        (part,) = item.parts
        return Found(entities=tuple(entities_of(tags[: len(part.ids)], part.offsets, part.special, self.outputs)))


def mean_by_part(hidden_TD: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """(T, D) -> the mean of each part's hidden states (P, D), [CLS] and [SEP] among them."""
    counts = torch.tensor(lengths, device=hidden_TD.device)
    part_T = torch.repeat_interleave(counts)
    sums = torch.zeros(len(lengths), hidden_TD.shape[1], dtype=torch.float32, device=hidden_TD.device)
    return (sums.index_add(0, part_T, hidden_TD.float()) / counts[:, None]).to(hidden_TD.dtype)


def best_span(item: Item, scores_PL2: torch.Tensor) -> Found:
    """Return the span whose start and end score highest together over an example's parts; empty without any token."""
    best, text = -torch.inf, ""
    for part, scores_L2 in zip(item.parts, scores_PL2, strict=True):
        places = [place for place, second in enumerate(part.second) if second]
        if not places:
            continue
        first, last = places[0], places[-1] + 1
        starts, ends = scores_L2[first:last].unbind(1)
        pairs = starts[:, None] + ends[None]
        pairs = pairs.masked_fill(~torch.ones_like(pairs).triu().tril(ANSWER_TOKENS - 1).bool(), -torch.inf)
        score = float(pairs.max())
        if score > best:
            start, end = divmod(int(pairs.argmax()), len(ends))
            context = item.example.parts[0][1] or ""
            best, text = score, context[part.offsets[first + start][0] : part.offsets[first + end][1]]
    return Found(text=text, score=best)
