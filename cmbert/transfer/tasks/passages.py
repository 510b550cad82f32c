"""CLUE's reading comprehension -> examples: C3, ChID and CMRC 2018, whose answers lie in or belong to a longer text."""

import re
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.files.reading import checked_text, json_lines, read_json, shown
from cmbert.transfer.tasks.fields import (
    KEPT_BACK,
    Example,
    checked_texts,
    field,
    identity_of,
    object_of,
    text_field,
    texts_field,
)

BLANK = re.compile(r"#idiom\d+#")
BLANK_TEXT = "____"  # of every blank of a ChID passage; the one in question stands in the middle of what is read


def read_c3(path: Path) -> Iterator[Example]:
    """C3: [[lines of the context], [{question, choice, answer}], id] for every dialogue or text."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: must be a list of [context, questions, id] as C3 is released")
    number = 0
    for index, entry in enumerate(entries):
        where = f"{path}: entry {index}"
        if not (isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], list)):
            raise InputError(f"{where}: must be [context, questions, id] as C3 is released")
        context = "\n".join(checked_texts(entry[0], "context", where))
        for question in entry[1]:
            object_of(question, where, "a question")
            asked, choices = text_field(question, "question", where), texts_field(question, "choice", where)
            answer = question.get("answer")
            kept_back = answer is None or (str(answer) in KEPT_BACK and answer not in choices)
            if not kept_back and answer not in choices:
                raise InputError(f"{where}: answer {shown(answer)} is not among the choices")
            parts = tuple((f"{asked} {choice}", context) for choice in choices)
            label = None if kept_back else choices.index(answer)
            yield Example(identity_of(question, ("id",), number, where), parts, label)
            number += 1


def answer_file(path: Path) -> Path:
    """Return where ChID's answers to a file of passages lie."""
    return path.with_name(f"{path.stem}_answer.json")


def read_chid(path: Path) -> Iterator[Example]:
    """ChID: a line has passages with blanks and ten idioms; the answers are in <split>_answer.json beside it."""
    answer_path = answer_file(path)
    answers = None
    if answer_path.is_file():
        answers = object_of(read_json(answer_path), str(answer_path), "the whole")
    for where, record in json_lines(path):
        candidates = texts_field(record, "candidates", where)
        for passage in texts_field(record, "content", where):
            context, blanks = _fill(passage)
            parts = tuple((idiom, context) for idiom in candidates)  # one text, however many blanks are in it
            for name, start in blanks:
                label = None if answers is None else answers.get(name)
                if answers is not None and not (type(label) is int and 0 <= label < len(candidates)):
                    raise InputError(f"{answer_path}: {name}: no answer from 0 to {len(candidates) - 1}")
                yield Example(name, parts, label, kept=(start, start + len(BLANK_TEXT)))


def _fill(passage: str) -> tuple[str, list[tuple[str, int]]]:
    """Return a passage with BLANK_TEXT in its blanks, and their names and places there."""
    parts: list[str] = []
    blanks, length, end = [], 0, 0
    for blank in BLANK.finditer(passage):
        parts += [passage[end : blank.start()], BLANK_TEXT]
        length += blank.start() - end
        blanks.append((blank[0], length))
        length, end = length + len(BLANK_TEXT), blank.end()
    return "".join([*parts, passage[end:]]), blanks


def read_cmrc(path: Path) -> Iterator[Example]:
    """CMRC 2018, as CLUE packs it (SQuAD's nesting) or as its authors do (context_text, query_text)."""
    whole = read_json(path)
    articles = whole.get("data") if isinstance(whole, dict) else whole
    if not isinstance(articles, list):
        raise InputError(f"{path}: must hold a list of articles under data")
    number = 0
    for index, article in enumerate(articles):
        place = f"{path}: article {index}"
        paragraphs = object_of(article, place, "it").get("paragraphs", [article])
        if not isinstance(paragraphs, list):
            raise InputError(f"{place}: paragraphs must be a list, found {type(paragraphs).__name__}")
        for paragraph in paragraphs:
            object_of(paragraph, place, "a paragraph")
            context = text_field(paragraph, "context" if "context" in paragraph else "context_text", place)
            for asked in field(paragraph, "qas", list, place):
                object_of(asked, place, "a question")
                identity = identity_of(asked, ("id", "query_id"), number, place)
                where = f"{path}: question {shown(identity)[1:-1]}"
                question = text_field(asked, "question" if "question" in asked else "query_text", where)
                answers = _answers(asked.get("answers"), where)
                yield _span_example(identity, question, context, answers)
                number += 1


def _answers(given: Any, where: str) -> list[tuple[str, int]]:
    """Return each answer with its start, -1 where the file does not say; none where it keeps them back."""
    if given is not None and not isinstance(given, list):
        raise InputError(f"{where}: answers must be a list, found {type(given).__name__}")
    found = []
    for answer in given or []:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (answer, None)
        if not isinstance(text, str | None):
            raise InputError(f"{where}: an answer must be text, found {type(text).__name__}")
        if start is not None and type(start) is not int:
            raise InputError(f"{where}: answer_start must be a whole number, found {type(start).__name__}")
        if text and text.strip():
            found.append((checked_text(text, "an answer", where), -1 if start is None else start))
    return found


def _span_example(identity: str, question: str, context: str, answers: list[tuple[str, int]]) -> Example:
    """Return the example; what it learns is the first answer that stands in the text."""
    bounds = (place for text, start in answers if (place := find_answer(context, text, start)))
    start, end = next(bounds, (-1, -1))
    return Example(identity, ((question, context),), None, tuple(text for text, _ in answers), start, end)


def find_answer(context: str, answer: str, start: int) -> tuple[int, int] | None:
    """Return where an answer stands in a text, characters: the place nearest to `start`, the first of two as near.

    Some of CMRC's starts are off by a few characters. White space may differ. None if the answer is not there.
    """
    answer = answer.strip()
    found = _nearest(context, answer, start)
    if found is not None:
        return found, found + len(answer)
    places = [place for place, char in enumerate(context) if not char.isspace()]
    bare, answer = "".join(context[place] for place in places), "".join(answer.split())
    found = _nearest(bare, answer, bisect_left(places, start))
    return None if found is None else (places[found], places[found + len(answer) - 1] + 1)


def _nearest(text: str, part: str, start: int) -> int | None:
    start = min(max(start, 0), len(text))
    before, after = text.rfind(part, 0, start + len(part)), text.find(part, start)
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start), default=None)
