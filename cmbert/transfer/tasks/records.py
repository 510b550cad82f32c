"""Records of texts and an answer -> examples: classes, several labels to a text, numbers, and two formats of CLUE's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.files.reading import checked_text, shown
from cmbert.transfer.tasks.fields import (
    KEPT_BACK,
    Example,
    Labels,
    field,
    identity_of,
    label_text,
    label_texts,
    number_of,
    text_field,
    texts_field,
)
from cmbert.transfer.tasks.tables import records
from cmbert.transfer.tasks.task import Task


def read_records(task: Task, path: Path, split: str, labels: Labels) -> Iterator[Example | None]:
    """Yield an example for every record, None for one that is left out for its label."""
    needed = (*task.text_keys, *([task.label] if split != "test" else ())) if task.reader == "fields" else ()
    for number, (where, record) in enumerate(records(path, needed)):
        if task.kind == "regression":
            answer: dict[str, Any] = {"value": number_of(record.get(task.label), task.label, where)}
        else:
            found = _labels(task, record.get(task.label), labels, where)
            if any(label in task.dropped_labels for label in found or ()):
                yield None
                continue
            places = None if found is None else tuple(sorted(task.labels.index(label) for label in found))
            answer = {"labels": places} if task.kind == "multilabel" else {"label": places[0] if places else None}
        if split != "test" and None in answer.values():
            what = "number" if task.kind == "regression" else "label"
            raise InputError(f"{where}: has no {what} under {task.label!r}; the {split} split needs all of them")
        texts, kept = _texts(task, record, where)
        yield Example(identity_of(record, ("id", "idx"), number, where), (texts,), kept=kept, **answer)


def _labels(task: Task, value: Any, labels: Labels, where: str) -> tuple[str, ...] | None:
    """Return the labels of a record, each of them known: one, or of a list any number; None for no answer."""
    if task.kind == "multilabel":
        found = label_texts(value, task.label, task.label_separator, where)
    else:
        text = label_text(value, task.label, where)
        found = None if text in KEPT_BACK and text not in labels.known else (text,)
    for label in found or ():
        labels.check(label, task.label, where)
    return found


def _texts(task: Task, record: dict[str, Any], where: str) -> tuple[tuple[str, str | None], tuple[int, int] | None]:
    """Return the texts of a record, and which characters of them must not be cut away."""
    if task.reader == "keywords":  # CSL: do these keywords belong to this abstract?
        return (" ".join(texts_field(record, "keyword", where)), text_field(record, "abst", where)), None
    if task.reader == "pronoun":
        text, kept = _mark_pronoun(record, where)
        return (text, None), kept
    first, *second = (text_field(record, key, where) for key in task.text_keys)
    return (first, second[0] if second else None), None


def _mark_pronoun(record: dict[str, Any], where: str) -> tuple[str, tuple[int, int]]:
    """CLUEWSC: mark the noun as _noun_ and the pronoun as [pronoun], as CLUE's baselines do; from where to where."""
    text, target = text_field(record, "text", where), field(record, "target", dict, where)
    marks = []  # place in the text, whether it opens, sign
    for span, left, right in (("span1", "_", "_"), ("span2", "[", "]")):
        start, spelled = field(target, f"{span}_index", int, where), field(target, f"{span}_text", str, where)
        checked_text(spelled, f"{span}_text", where)
        if start < 0 or text[start : start + len(spelled)] != spelled:
            raise InputError(f"{where}: target.{span}_index {start}: {shown(spelled)} does not stand there")
        marks += [(start, True, left), (start + len(spelled), False, right)]
    first, last = min(marks)[0], max(marks)[0]
    for place, _, sign in sorted(marks, reverse=True):  # from the end, so that places before stay
        text = text[:place] + sign + text[place:]
    return text, (first, last + len(marks))
