"""Files of the tasks -> examples. A file that is not as it should be is named with its line."""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from cmbert.errors import InputError
from cmbert.files.reading import shown
from cmbert.seeding import generator
from cmbert.transfer.tasks.entities import read_conll, read_entities
from cmbert.transfer.tasks.fields import Example, Labels, label_text, label_texts, shown_names
from cmbert.transfer.tasks.passages import answer_file, read_c3, read_chid, read_cmrc
from cmbert.transfer.tasks.records import read_records
from cmbert.transfer.tasks.tables import records
from cmbert.transfer.tasks.task import Task

logger = logging.getLogger(__name__)

PASSAGES = {"c3": read_c3, "chid": read_chid, "cmrc": read_cmrc}
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")  # a label that is one
HELD_BACK = 10  # one in so many training examples is the dev split of a task that names none (ours)


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    name: str
    examples: tuple[Example, ...]
    left_out: int = 0
    """Examples of the files that are not among them: their label is one of the task's dropped ones."""

    @property
    def labelled(self) -> bool:
        """Return whether every example says what is right."""
        return all(example.labelled for example in self.examples)


def read_task(task: Task, folder: Path) -> tuple[Task, dict[str, Split | None]]:
    """Return a task with its labels, of the training set if it names none, and its splits by name.

    A task without dev files has a tenth of its training examples for dev, always the same. See read_split for errors.
    """
    learned = task.needs_labels
    if learned:
        task = replace(task, labels=_labels_of_train(task, folder))
        listed = shown_names(", ".join(task.labels))
        logger.info("%s: %d labels, those of %s: %s", task.name, len(task.labels), ", ".join(task.train), listed)
    splits = {name: read_split(task, folder, name, learned=learned) for name in ("train", "dev", "test")}
    train, path = splits["train"], folder / task.train[0]
    assert train
    if not task.dev:
        train, dev = _hold_back(train, path)
        splits |= {"train": train, "dev": dev}
    if task.kind == "regression" and len({example.value for example in train.examples}) == 1:
        raise InputError(f"{path}: {task.label} is the same number in every example; nothing to learn")
    return task, splits


def _hold_back(train: Split, path: Path) -> tuple[Split, Split]:
    """Return what is left of a training split, and the dev split that is drawn from it by lot."""
    number = len(train.examples)
    if number < HELD_BACK:
        raise InputError(f"{path}: {number} examples, of which a tenth cannot be held back; add some, or a dev split")
    drawn = set(generator(0, "held-back").permutation(number)[: number // HELD_BACK].tolist())
    logger.info("%d of %s examples of %s, drawn by lot, are held back for dev", len(drawn), f"{number:,}", path)
    dev = tuple(example for place, example in enumerate(train.examples) if place in drawn)
    rest = tuple(example for place, example in enumerate(train.examples) if place not in drawn)
    return replace(train, examples=rest), Split("dev", dev)


def read_split(task: Task, folder: Path, name: str, *, learned: bool = False) -> Split | None:
    """Read a split ("train", "dev", "test") of a task; None if it has no files, or is test and none of them is there.

    learned: the task's labels are those of its training set. Raises InputError naming file and line: a missing split,
    a line of another format, a label that is not the task's, an empty text, half of a surrogate pair, in train and dev
    an example without answer.
    """
    paths = _paths(task, folder, name)
    if not paths:
        return None
    examples, left_out = [], 0
    for path in paths:
        for example in _read(task, path, name, _known_labels(task, learned)):
            if example is None:
                left_out += 1
                continue
            if name != "test" and not example.labelled:
                raise InputError(f"{path}: {_unanswered(task, path, example, name)}")
            examples.append(example)
    if not examples:
        raise InputError(f"{paths[0]}: holds no example of {task.name}")
    if name == "test" and task.reader in ("chid", "cmrc"):
        _refuse_twins(examples, paths[0])
    if name == "test" and task.kind == "multilabel" and not any(example.labels for example in examples):
        examples = [replace(example, labels=None) for example in examples]  # a column all empty is no answer
    return Split(name, tuple(examples), left_out)


def _paths(task: Task, folder: Path, name: str) -> list[Path]:
    """Return the files of a split, none of a test split of which none is there. Raises InputError for one missing."""
    paths = [folder / file for file in getattr(task, name)]
    missing = [path for path in paths if not path.is_file()]
    if name == "test" and len(missing) == len(paths):
        return []
    if missing:
        raise InputError(f"{missing[0]}: no such file: {task.name} needs its {name} split there")
    return paths


def _read(task: Task, path: Path, split: str, labels: Labels) -> Iterable[Example | None]:
    """Return the examples of a file, None for one that is left out for its label."""
    if task.reader in PASSAGES:
        return PASSAGES[task.reader](path)
    if task.reader == "conll":
        return read_conll(path, split, labels)
    if task.reader == "entities":
        return read_entities(task, path, split, labels)
    return read_records(task, path, split, labels)


def _known_labels(task: Task, learned: bool) -> Labels:
    """Return which labels an answer may have."""
    known = (*task.labels, *task.dropped_labels)
    if not learned:
        return Labels(known, f"{task.name}'s")
    remedy = "add an example of it there, or list labels in a task file"
    return Labels(known, f"{' and '.join(task.train)}'s", remedy)


def _labels_of_train(task: Task, folder: Path) -> tuple[str, ...]:
    """Return the labels or types of entities of the training files, by alphabet, or as numbers if all are."""
    paths = _paths(task, folder, "train")
    found = {label for path in paths for label in _labels_in(task, path)} - {"", *task.dropped_labels}
    least = 2 if task.kind == "classification" else 1
    if len(found) < least:
        there = f"one label, {shown(*found)}" if found else f"no {'entity' if task.kind == 'tokens' else 'label'}"
        raise InputError(f"{paths[0]}: has {there} in all its examples; {task.name} needs {least} to tell apart")
    are_numbers = all(NUMBER.fullmatch(label) for label in found)
    return tuple(sorted(found, key=lambda label: (Decimal(label) if are_numbers else 0, label)))


def _labels_in(task: Task, path: Path) -> Iterator[str]:
    """Yield every label of a training file."""
    if task.kind == "tokens":
        for example in _read(task, path, "train", _known_labels(task, learned=True)):
            yield from (entity.label for entity in (example.entities if example else None) or ())
        return
    for where, record in records(path, (*task.text_keys, task.label) if task.reader == "fields" else ()):
        if task.kind == "multilabel":
            yield from label_texts(record.get(task.label), task.label, task.label_separator, where) or ()
        else:
            yield label_text(record.get(task.label), task.label, where)


def _unanswered(task: Task, path: Path, example: Example, name: str) -> str:
    """Return what to say of an example that the file gives no answer to."""
    said = f"question {shown(example.id)[1:-1]}: has no answer; the {name} split needs all of them"
    if task.reader == "cmrc":
        return f"{said} (a model here always answers: remove questions that have none, as SQuAD 2's)"
    return f"{said}, in {answer_file(path).name} beside it" if task.reader == "chid" else said


def _refuse_twins(examples: list[Example], path: Path) -> None:
    seen = set()
    for example in examples:
        if example.id in seen:
            raise InputError(f"{path}: {shown(example.id)} stands twice; a submission holds an id once")
        seen.add(example.id)
