"""Examples as the model reads them: encoded, cut to length, a long text in overlapping windows."""

from collections.abc import Sequence
from dataclasses import dataclass

from cmbert.evaluate.finetune.backbone import Backbone, Piece, token_rows
from cmbert.evaluate.finetune.fields import Example
from cmbert.evaluate.finetune.tasks import Task

STRIDE_TOKENS = 128  # by which two windows of a text overlap, as in CLUE's baseline


@dataclass(frozen=True)
class Item:
    """An example as the model reads it."""

    example: Example
    pieces: list[Piece]
    spans: list[tuple[int, int]]
    """Span tasks: first and last token of the answer in each piece; (0, 0), the [CLS], where it is not."""


def prepare(backbone: Backbone, task: Task, examples: Sequence[Example], max_length: int) -> list[Item]:
    """Encode the examples of a split."""
    if task.kind == "span":
        return [windows(backbone, example, max_length) for example in examples]
    texts = [piece for example in examples for piece in example.pieces]
    pieces = iter(backbone.read(texts, max_length))
    return [Item(example, [next(pieces) for _ in example.pieces], []) for example in examples]


def windows(backbone: Backbone, example: Example, max_length: int) -> Item:
    """Pair the question with as many windows of the text as it takes; find the first answer's tokens in each."""
    ((question, context),) = example.pieces
    question_tokens = len(backbone.tokenizer(question, add_special_tokens=False)["input_ids"])
    room = max_length - min(question_tokens, max_length // 2)
    batch = backbone.tokenizer(
        question if question_tokens <= max_length // 2 else question[: max_length // 2],
        context,
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE_TOKENS, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    )
    pieces = token_rows(batch)
    answer = example.answers[0] if example.answers else ""
    end = example.answer_start + len(answer)
    return Item(example, pieces, [_tokens_of(piece, example.answer_start, end) for piece in pieces])


def _tokens_of(piece: Piece, start: int, end: int) -> tuple[int, int]:
    """Return first and last token that touch characters [start, end) of the second text; (0, 0) if not all is there."""
    if start < 0:
        return 0, 0
    inside = [
        place
        for place, (left, right) in enumerate(piece.offsets)
        if piece.second[place] and left < end and right > start
    ]
    if not inside or piece.offsets[inside[0]][0] > start or piece.offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]
