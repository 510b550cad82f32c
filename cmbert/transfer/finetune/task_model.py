"""An encoder with the head of a task, and what it makes of a batch of examples.

The head is stock ModernBERT's, for every encoder: dense, GELU, norm, dropout and a linear layer, on the mean of a
text's hidden states (classes and choices) or on each token's (spans). Shapes: E examples, P parts, T tokens, L longest
part, D width, C classes or choices.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cmbert.seeding import integer_seed
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.finetune.items import Item
from cmbert.transfer.tasks.task import Task

DROPOUT = 0.1  # before the linear layer (ours; the encoders keep their own)
HEAD_STD = 0.02  # of the head's fresh weights, as BERT's
ANSWER_TOKENS = 50  # longest span that is considered (ours; CMRC's answers are shorter, bar a few in a thousand)


class Found(NamedTuple):
    """What the model answers to one example."""

    choice: int
    """Class or choice; -1 for a span."""
    text: str
    """The span; empty for a class or choice."""
    score: float = 0.0
    """Of a span's start and end together: of parts of one long text the best answers."""


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
        self.backbone, self.kind = backbone, task.kind
        generator = torch.Generator().manual_seed(integer_seed(seed, "finetune-head"))
        self.classifier = nn.Linear(backbone.hidden_size, len(task.outputs))
        with torch.no_grad():
            self.classifier.weight.normal_(0.0, HEAD_STD, generator=generator)
            self.classifier.bias.zero_()
        self.head = copy.deepcopy(backbone.head) or FreshHead(backbone.hidden_size, generator)

    def _classify(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P or T, D) -> scores in fp32, (P or T, outputs)."""
        scores: torch.Tensor = self.classifier(F.dropout(self.head(hidden), DROPOUT, self.training))
        return scores.float()

    def forward(self, items: Sequence[Item]) -> torch.Tensor:
        """Scores: (E, C) of classes or choices, (P, L, 2) of starts and ends; -inf where there is nothing to choose."""
        parts = [part for item in items for part in item.parts]
        device = self.classifier.weight.device
        lengths = [len(part.ids) for part in parts]
        ids = torch.tensor([index for part in parts for index in part.ids], device=device)
        types = torch.tensor([index for part in parts for index in part.type_ids], device=device)
        hidden_TD = self.backbone(ids, types, lengths)
        if self.kind == "span":
            scores_T2 = self._classify(hidden_TD)
            return nn.utils.rnn.pad_sequence(scores_T2.split(lengths), batch_first=True, padding_value=-torch.inf)
        scores_PC = self._classify(mean_by_part(hidden_TD, lengths))
        if self.kind == "classification":
            return scores_PC
        choices = [len(item.parts) for item in items]
        return nn.utils.rnn.pad_sequence(scores_PC[:, 0].split(choices), batch_first=True, padding_value=-torch.inf)

    def num_targets(self, items: Sequence[Item]) -> int:
        """Return over how many targets a mean of losses runs: the examples, or starts and ends of every part."""
        return sum(2 * len(item.spans) for item in items) if self.kind == "span" else len(items)

    def loss_sum(self, items: Sequence[Item]) -> torch.Tensor:
        """Cross-entropy, nats, summed over the targets, so that sums of parts are the sum of the whole."""
        scores = self(items)
        if self.kind != "span":
            labels_E = torch.tensor([item.example.label for item in items], device=scores.device)
            return F.cross_entropy(scores, labels_E, reduction="sum")
        spans_P2 = torch.tensor([span for item in items for span in item.spans], device=scores.device)
        scores_SL = scores.transpose(1, 2).flatten(0, 1)  # S = 2 P starts and ends
        return F.cross_entropy(scores_SL, spans_P2.flatten(), reduction="sum")

    @torch.no_grad()
    def answer(self, items: Sequence[Item]) -> list[Found]:
        """Return the best class, choice or span of each example."""
        scores = self(items)
        if self.kind != "span":
            return [Found(index, "") for index in scores.argmax(1).tolist()]
        found, first = [], 0
        for item in items:
            last = first + len(item.parts)
            found.append(best_span(item, scores[first:last]))
            first = last
        return found


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
    return Found(-1, text, best)
