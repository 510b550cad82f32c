"""What of a task's files is not learned from, not asked whole or beyond what an answer can say, counted."""

from collections import Counter
from collections.abc import Sequence

from cmbert.transfer.finetune.items import Item
from cmbert.transfer.finetune.task_model import ANSWER_TOKENS
from cmbert.transfer.tasks.examples import Split
from cmbert.transfer.tasks.tags import OUT_OF_REACH, out_of_reach
from cmbert.transfer.tasks.task import Task


def losses_of(task: Task, splits: dict[str, Split | None], items: dict[str, list[Item]]) -> dict[str, int]:
    """Return what of a task's files is not learned from or asked whole, by what it is. Answers are those of train."""
    every = [item for part in items.values() for item in part]
    spans = items["train"] if task.kind == "span" else []
    lengths = [last - first + 1 for item in spans for first, last in item.spans]
    unlabelled = sum(not item.example.labelled for item in items["test"])
    return {
        "texts_cut": sum(not part.whole for item in every for part in item.parts),
        "examples_left_out_for_their_label": sum(split.left_out for split in splits.values() if split),
        "answers_not_in_their_text_left_out": sum(item.example.answer_start < 0 for item in spans),
        "answers_across_all_windows": sum(item.lost for item in spans),
        f"windows_with_an_answer_above_{ANSWER_TOKENS}_tokens": sum(length > ANSWER_TOKENS for length in lengths),
        "test_examples_without_answer_so_none_scored": unlabelled if unlabelled < len(items["test"]) else 0,
        **_of_entities(task, every),
    }


def _of_entities(task: Task, items: Sequence[Item]) -> dict[str, int]:
    """Return the number of entities, and of those that no answer can hit."""
    if task.kind != "tokens":
        return {}
    found = count_out_of_reach(items)
    return {"entities": count_entities(items), **{f"entities_{why}": found[why] for why in OUT_OF_REACH}}


def count_entities(items: Sequence[Item]) -> int:
    """Count the entities of the texts."""
    return sum(len(item.example.entities or ()) for item in items)


def count_out_of_reach(items: Sequence[Item]) -> Counter[str]:
    """Count the entities that no tags of the tokens can say, by why."""
    found: Counter[str] = Counter()
    for item in items:
        if item.example.entities:
            (part,), ((text, _),) = item.parts, item.example.parts
            found += out_of_reach(item.example.entities, len(text), part.offsets, part.special)
    return found
