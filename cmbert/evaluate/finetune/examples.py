"""Official files of the tasks -> examples. A file that is not as it should be is named with its line."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.evaluate.finetune.tasks import Task

BLANK = re.compile(r"#idiom\d+#")
BLANK_TEXT = "____"  # of the other blanks of a ChID passage, and of the one in question
CHID_SIDE_CHARACTERS = 72  # of a passage kept to each side of a blank: with the idiom what max_length holds (ours)


@dataclass(frozen=True)
class Example:
    """One question to the model."""

    id: str
    """As in the file, or the line number from 0."""
    pieces: tuple[tuple[str, str | None], ...]
    """Texts to read, each alone or as a pair; several for multiple choice."""
    label: int | None
    """Index of the label or of the right choice; None where the file does not say."""
    answers: tuple[str, ...] = ()
    """Span tasks: the answers that count as right."""
    answer_start: int = -1
    """Span tasks: where the first answer begins in the second text of the piece, characters; -1 = not there."""


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    name: str
    examples: tuple[Example, ...]

    @property
    def labelled(self) -> bool:
        """Return whether every example says what is right."""
        return all(example.label is not None or example.answers for example in self.examples)


def read_split(task: Task, folder: Path, name: str) -> Split | None:
    """Read a split ("train", "dev", "test") of a task; None if it is the test split and none of its files is there.

    Raises InputError naming file and line: a missing split, a line of another format, a label that is not the task's,
    an empty text.
    """
    paths = [folder / file for file in getattr(task, name)]
    missing = [path for path in paths if not path.is_file()]
    if missing and name == "test" and len(missing) == len(paths):
        return None
    if missing:
        raise InputError(f"{missing[0]}: no such file: {task.name} needs its {name} split there")
    readers = {"c3": _read_c3, "chid": _read_chid, "cmrc": _read_cmrc}
    read = readers.get(task.reader, _read_records)
    examples = tuple(example for path in paths for example in read(task, path))
    if not examples:
        raise InputError(f"{paths[0]}: holds no example of {task.name}")
    if name != "test" and any(example.label is None and not example.answers for example in examples):
        raise InputError(f"{paths[0]}: an example has no label; the {name} split needs all of them")
    return Split(name, examples)


def _read_records(task: Task, path: Path) -> Iterator[Example]:
    for number, where, record in _records(path):
        label = record.get(task.label)
        label = None if label is None or label == "" else str(label)
        if label in task.dropped_labels:
            continue
        if label is not None and label not in task.labels:
            shown = ", ".join(task.labels[:6]) + (", ..." if len(task.labels) > 6 else "")
            raise InputError(f"{where}: {task.label} {label!r} is not one of {task.name}'s: {shown}")
        identity = str(record.get("id", record.get("idx", number)))
        index = None if label is None else task.labels.index(label)
        yield Example(identity, (_texts(task, record, where),), index)


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield number, "file:line" and fields of each line of a JSON-lines file or of a TSV file with a header."""
    text = _read_text(path)
    if path.suffix == ".tsv":
        header, *rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise InputError(f"{path}:{number + 2}: has {len(row)} columns, the header {len(header)}")
            yield number, f"{path}:{number + 2}", dict(zip(header, row, strict=True))
        return
    for number, line in enumerate(text.splitlines()):
        where = f"{path}:{number + 1}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object but {type(record).__name__}")
        yield number, where, record


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}") from error
    if not text.strip():
        raise InputError(f"{path}: is empty")
    return text


def _texts(task: Task, record: dict[str, Any], where: str) -> tuple[str, str | None]:
    if task.reader == "keywords":  # CSL: do these keywords belong to this abstract?
        return " ".join(_field(record, "keyword", list, where)), _text(record, "abst", where)
    if task.reader == "pronoun":
        return _mark_pronoun(record, where), None
    first, *second = (_text(record, key, where) for key in task.text)
    return first, second[0] if second else None


def _text(record: dict[str, Any], key: str, where: str) -> str:
    text = _field(record, key, str, where)
    if not text.strip():
        raise InputError(f"{where}: {key} is empty")
    return text


def _field(record: Any, key: Any, kind: type, where: str) -> Any:
    """Return a field that must be there and of the right kind."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = f"{type(value).__name__}" if value is not None else f"none; fields: {', '.join(map(str, record))[:100]}"
        raise InputError(f"{where}: {key} must be {kind.__name__}, found {found}")
    return value


def _mark_pronoun(record: dict[str, Any], where: str) -> str:
    """CLUEWSC: mark the noun as _noun_ and the pronoun as [pronoun], as CLUE's baselines do."""
    text, target = _text(record, "text", where), _field(record, "target", dict, where)
    marks = []
    for span, left, right in (("span1", "_", "_"), ("span2", "[", "]")):
        start, spelled = _field(target, f"{span}_index", int, where), _field(target, f"{span}_text", str, where)
        if text[start : start + len(spelled)] != spelled:
            raise InputError(f"{where}: target.{span}_index {start}: {spelled!r} does not stand there")
        marks.append((start, start + len(spelled), left, right))
    for start, end, left, right in sorted(marks, reverse=True):  # from the end, so that places before stay
        text = text[:start] + left + text[start:end] + right + text[end:]
    return text


def _load_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def _read_c3(task: Task, path: Path) -> Iterator[Example]:
    """C3: [[lines of the context], [{question, choice, answer}], id] for every dialogue or text."""
    entries = _load_json(path)
    number = 0
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        where = f"{path}: entry {index}"
        if not (isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], list)):
            raise InputError(f"{where}: must be [context, questions, id] as C3 is released")
        context = "\n".join(map(str, entry[0]))
        for question in entry[1]:
            asked, choices = _text(question, "question", where), _field(question, "choice", list, where)
            answer = question.get("answer")
            if answer is not None and answer not in choices:
                raise InputError(f"{where}: answer {answer!r} is not among the choices")
            pieces = tuple((f"{asked} {choice}", context) for choice in choices)
            yield Example(str(question.get("id", number)), pieces, None if answer is None else choices.index(answer))
            number += 1


def _read_chid(task: Task, path: Path) -> Iterator[Example]:
    """ChID: a line has passages with blanks and ten idioms; the answers are in <split>_answer.json beside it."""
    answer_path = path.with_name(f"{path.stem}_answer.json")
    answers = _load_json(answer_path) if answer_path.is_file() else None
    for _, where, record in _records(path):
        candidates = _field(record, "candidates", list, where)
        for passage in _field(record, "content", list, where):
            for blank in BLANK.finditer(passage):
                left = BLANK.sub(BLANK_TEXT, passage[: blank.start()])[-CHID_SIDE_CHARACTERS:]
                right = BLANK.sub(BLANK_TEXT, passage[blank.end() :])[:CHID_SIDE_CHARACTERS]
                label = None if answers is None else answers.get(blank[0])
                if answers is not None and not (isinstance(label, int) and 0 <= label < len(candidates)):
                    raise InputError(f"{answer_path}: {blank[0]}: no answer from 0 to {len(candidates) - 1}")
                pieces = tuple((idiom, left + BLANK_TEXT + right) for idiom in candidates)
                yield Example(blank[0], pieces, label)


def _read_cmrc(task: Task, path: Path) -> Iterator[Example]:
    """CMRC 2018, as CLUE packs it (SQuAD's nesting) or as its authors do (context_text, query_text)."""
    whole = _load_json(path)
    articles = whole.get("data") if isinstance(whole, dict) else whole
    if not isinstance(articles, list):
        raise InputError(f"{path}: must hold a list of articles under data")
    for article in articles:
        for paragraph in article.get("paragraphs", [article]):
            context = _text(paragraph, "context" if "context" in paragraph else "context_text", str(path))
            for asked in _field(paragraph, "qas", list, str(path)):
                identity = str(asked.get("id", asked.get("query_id", "")))
                where = f"{path}: question {identity}"
                question = _text(asked, "question" if "question" in asked else "query_text", where)
                yield _span_example(identity, question, context, asked.get("answers", []), where)


def _span_example(identity: str, question: str, context: str, answers: Sequence[Any], where: str) -> Example:
    texts = [answer["text"] if isinstance(answer, dict) else str(answer) for answer in answers]
    start = -1
    if answers:
        start = answers[0].get("answer_start", -1) if isinstance(answers[0], dict) else -1
        if start < 0 or context[start : start + len(texts[0])] != texts[0]:
            start = context.find(texts[0])  # some of CMRC's starts are off by a few characters
        if not texts[0]:
            raise InputError(f"{where}: its answer is empty")
    return Example(identity, ((question, context),), None, tuple(texts), start)
