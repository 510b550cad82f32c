"""Examples as the model reads them: encoded, cut to length, a long text in overlapping windows. Cuts count tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cmbert.transfer.finetune.backbone import Backbone, Part, token_rows
from cmbert.transfer.tasks.fields import Example
from cmbert.transfer.tasks.tags import apart, tags_of
from cmbert.transfer.tasks.task import Task

STRIDE_TOKENS = 128  # by which two windows of a text overlap, as in CLUE's baseline
READ_TOGETHER = 1000  # examples encoded in one call


@dataclass(frozen=True)
class Item:
    """An example as the model reads it."""

    example: Example
    parts: list[Part]
    spans: list[tuple[int, int]]
    """Span tasks: first and last token of the answer in each part; (0, 0), the [CLS], where it is not."""
    tags: list[int] = field(default_factory=list)
    """Tokens: index in task.outputs of each token's tag, NO_TAG of special ones; empty if the file does not say."""

    @property
    def lost(self) -> bool:
        """Return whether the answer stands in the text, but whole in no window."""
        return self.example.answer_start >= 0 and not any(last for _, last in self.spans)


class Cutter:
    """Cuts texts to a number of tokens; knows the tokens of the last text, which many examples share."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._text = ""
        self._offsets: list[tuple[int, int]] = []

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the characters of each token of `text`."""
        if text != self._text:
            options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
            self._text, self._offsets = text, self.tokenizer(text, verbose=False, **options)["offset_mapping"]
        return self._offsets

    def cut(self, text: str, room: int, kept: tuple[int, int] = (0, 0)) -> str:
        """Return the part of `text` of at most `room` tokens around the characters `kept`, which stay in any case."""
        offsets = self.offsets(text)
        if len(offsets) <= room:
            return text
        first = bisect_right(offsets, kept[0], key=lambda pair: pair[1])
        last = max(first, bisect_left(offsets, kept[1], key=lambda pair: pair[0]))
        spare = max(room - (last - first), 0)
        while True:
            left = min(first, max(spare // 2, spare - (len(offsets) - last)))
            right = min(len(offsets) - last, spare - left)
            start = offsets[first - left][0] if left else kept[0]
            shortened = text[start : offsets[last + right - 1][1] if right else kept[1]]
            excess = len(Cutter(self.tokenizer).offsets(shortened)) - room  # away from the rest it may have more tokens
            if excess <= 0 or not spare:
                return shortened
            spare = max(spare - excess, 0)


def prepare(backbone: Backbone, task: Task, examples: Sequence[Example], max_length: int) -> list[Item]:
    """Encode the examples of a split."""
    if task.kind == "span":
        return [windows(backbone, example, max_length) for example in examples]
    items: list[Item] = []
    cutter = Cutter(backbone.tokenizer)
    for start in range(0, len(examples), READ_TOGETHER):
        block = examples[start : start + READ_TOGETHER]
        texts = [_around_what_is_kept(cutter, example, max_length) for example in block]
        parts = iter(backbone.read([text for group in texts for text in group], max_length))
        for example, group in zip(block, texts, strict=True):
            read = [next(parts) for _ in group]
            if group is not example.parts:
                read = [replace(part, whole=False) for part in read]
            items.append(Item(example, read, [], _tags(task, example, read[0])))
    return items


def _tags(task: Task, example: Example, part: Part) -> list[int]:
    if task.kind != "tokens" or example.entities is None:
        return []
    entities = apart(example.entities, len(example.parts[0][0]))
    return tags_of(entities, part.offsets, part.special, task.outputs)


def _around_what_is_kept(cutter: Cutter, example: Example, max_length: int) -> tuple[tuple[str, str | None], ...]:
    """Return the texts of an example, the last of each part cut so that what must be kept is not what is cut away."""
    if example.kept is None:
        return example.parts
    first, second = example.parts[0]
    room = max_length - cutter.tokenizer.num_special_tokens_to_add(pair=second is not None)
    if second is None:
        shortened = cutter.cut(first, room, example.kept)
        return example.parts if shortened == first else ((shortened, None),)
    firsts = [text for text, _ in example.parts]
    longest = max(map(len, cutter.tokenizer(firsts, add_special_tokens=False, verbose=False)["input_ids"]))
    shortened = cutter.cut(second, max(room - longest, room // 2), example.kept)
    return example.parts if shortened == second else tuple((text, shortened) for text in firsts)


def windows(backbone: Backbone, example: Example, max_length: int) -> Item:
    """Pair the question with as many windows of the text as it takes; find the answer's tokens in each."""
    ((asked, context),) = example.parts
    room = max_length - backbone.tokenizer.num_special_tokens_to_add(pair=True)
    cutter = Cutter(backbone.tokenizer)
    question = cutter.cut(asked, room // 2)
    room -= len(cutter.offsets(question))
    batch = backbone.tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE_TOKENS, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    )
    parts = [replace(part, whole=question == asked) for part in token_rows(batch)]
    start, end = example.answer_start, example.answer_end
    end = end if end >= 0 else start + len("".join(example.answers[:1]))
    return Item(example, parts, _tokens_of(parts, start, end))


def _tokens_of(parts: Sequence[Part], start: int, end: int) -> list[tuple[int, int]]:
    """Return, for each part, the first and last token that touch characters [start, end) of the second text.

    (0, 0) where not all of those that do in any part are there. Characters that are in no token, such as white space
    at the answer's ends, ask for none.
    """
    inside = [
        [
            place
            for place, (left, right) in enumerate(part.offsets)
            if part.second[place] and left < end and right > start
        ]
        for part in parts
    ]
    bounds = [
        (part.offsets[places[0]][0], part.offsets[places[-1]][1]) if places else (end, start)
        for part, places in zip(parts, inside, strict=True)
    ]
    whole = min(left for left, _ in bounds), max(right for _, right in bounds)
    return [
        (places[0], places[-1]) if places and bound == whole else (0, 0)
        for places, bound in zip(inside, bounds, strict=True)
    ]
