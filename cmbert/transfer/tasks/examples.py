"""Official files of the tasks -> examples. A file that is not as it should be is named with its line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.files.reading import json_lines, lines_of, shown
from cmbert.transfer.tasks.fields import (
    Example,
    checked_text,
    field,
    identity_of,
    label_of,
    text_field,
    texts_field,
)
from cmbert.transfer.tasks.passages import answer_file, read_c3, read_chid, read_cmrc
from cmbert.transfer.tasks.task import Task

PASSAGES = {"c3": read_c3, "chid": read_chid, "cmrc": read_cmrc}


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


def read_split(task: Task, folder: Path, name: str) -> Split | None:
    """Read a split ("train", "dev", "test") of a task; None if it is the test split and none of its files is there.

    Raises InputError naming file and line: a missing split, a line of another format, a label that is not the task's,
    an empty text, half of a surrogate pair, in train and dev an example without answer.
    """
    paths = [folder / file for file in getattr(task, name)]
    missing = [path for path in paths if not path.is_file()]
    if name == "test" and len(missing) == len(paths):
        return None
    if missing:
        raise InputError(f"{missing[0]}: no such file: {task.name} needs its {name} split there")
    examples, left_out = [], 0
    for path in paths:
        read = PASSAGES[task.reader](path) if task.reader in PASSAGES else _read_records(task, path, name)
        for example in read:
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
    return Split(name, tuple(examples), left_out)


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


def _read_records(task: Task, path: Path, split: str) -> Iterator[Example | None]:
    """Yield an example for every line, None for one that is left out for its label."""
    for number, (where, record) in enumerate(_records(path)):
        label = label_of(record, task.label, (*task.labels, *task.dropped_labels), where, task.name)
        if label is not None and label not in task.labels:
            yield None
            continue
        if label is None and split != "test":
            raise InputError(f"{where}: has no label under {task.label!r}; the {split} split needs all of them")
        identity = identity_of(record, ("id", "idx"), number, where)
        index = None if label is None else task.labels.index(label)
        texts, kept = _texts(task, record, where)
        yield Example(identity, (texts,), index, kept=kept)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file:line" and fields of each line of a JSON-lines file or of a TSV file with a header."""
    if path.suffix.lower() != ".tsv":
        yield from json_lines(path)
        return
    lines = lines_of(path)
    _, first = next(lines)
    header = first.split("\t")
    if len(set(header)) < len(header):
        raise InputError(f"{path}:1: the header names a column twice")
    for number, line in lines:
        row = line.split("\t")
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: has {len(row)} columns, the header {len(header)}")
        yield f"{path}:{number}", dict(zip(header, row, strict=True))


def _texts(task: Task, record: dict[str, Any], where: str) -> tuple[tuple[str, str | None], tuple[int, int] | None]:
    """Return the texts of a record, and which characters of them must not be cut away."""
    if task.reader == "keywords":  # CSL: do these keywords belong to this abstract?
        return (" ".join(texts_field(record, "keyword", where)), text_field(record, "abst", where)), None
    if task.reader == "pronoun":
        text, kept = _mark_pronoun(record, where)
        return (text, None), kept
    first, *second = (text_field(record, key, where) for key in task.text)
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
