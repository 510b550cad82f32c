"""Files of texts with entities -> examples: CoNLL's lines of units and tags, and JSON lines of places in a text.

A type of entity is refused by its line if the task does not know it. The JSON form is CLUENER2020's (arXiv 2001.04351)
or doccano's (github.com/doccano/doccano).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmbert.errors import InputError
from cmbert.files.reading import checked_text, every_line, json_lines, shown
from cmbert.transfer.tasks.fields import Entity, Example, Labels, field, identity_of, object_of, text_field
from cmbert.transfer.tasks.task import OUTSIDE, Task

DOCUMENT_START = "-DOCSTART-"
TAG = re.compile(r"O|([BIMES])-(.*\S.*)")
BEGINS = ("B", "S")  # of BIO, BIOES and BMES; I, M and E go on
LATIN = re.compile(r"[0-9A-Za-z\u00c0-\u024f]")  # letters and digits that are written with spaces between words
Unit = tuple[str, str | None, int]
"""A character or word, its tag, if it has one, and its line."""


def read_conll(path: Path, split: str, labels: Labels) -> Iterator[Example]:
    """Yield a text for every run of lines without a blank one; a test split may have units without tags."""
    for number, units in enumerate(_sentences(path, split)):
        where = f"{path}:{units[0][2]}"
        text, places = join([unit for unit, _, _ in units])
        untagged = [line for _, tag, line in units if tag is None]
        if untagged and len(untagged) < len(units):
            raise InputError(f"{path}:{untagged[0]}: {_one_column()}")
        entities = None if untagged else tuple(_runs(units, places, labels, path))
        yield Example(str(number), ((checked_text(text, "the text", where), None),), entities=entities)


def _one_column() -> str:
    return "has one column; a line is a character or word, a tab or space, and its tag"


def _sentences(path: Path, split: str) -> Iterator[list[Unit]]:
    units: list[Unit] = []
    for number, line in every_line(path):
        cells = _cells(line)
        if cells and cells[0] == DOCUMENT_START:
            continue
        if cells and not cells[0]:
            raise InputError(f"{path}:{number}: has nothing in its first column")
        if len(cells) == 1 and split != "test":
            raise InputError(f"{path}:{number}: {_one_column()}")
        if cells:
            units.append((cells[0], cells[-1] if len(cells) > 1 else None, number))
        elif units:
            yield units
            units = []
    if units:
        yield units


def _cells(line: str) -> list[str]:
    """Return the columns of a line; only tabs, or where it has none spaces, stand between them."""
    if not line.strip():
        return []
    return line.rstrip("\t ").split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def join(units: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of units, and where each stands in it, [start, end).

    Chinese has no spaces. Two words of Latin letters or digits have one between them, two single characters of them
    none, since files of characters have a number's digits in lines of their own.
    """
    text, places = "", []
    before = ""
    for unit in units:
        words = before and unit and LATIN.match(before[-1]) and LATIN.match(unit[0])
        text += " " if words and max(len(before), len(unit)) > 1 else ""
        places.append((len(text), len(text) + len(unit)))
        text, before = text + unit, unit
    return text, places


def _runs(units: Sequence[Unit], places: Sequence[tuple[int, int]], labels: Labels, path: Path) -> Iterator[Entity]:
    """Yield the entities of tagged units; one that begins with I, M or E counts as well (conlleval's way)."""
    found: Entity | None = None
    for (_, tag, number), (start, end) in zip(units, places, strict=True):
        where, match = f"{path}:{number}", TAG.fullmatch(tag or "")
        if not match:
            raise InputError(f"{where}: tag {shown(tag)} must be O, or B-, I-, M-, E- or S- and a type")
        prefix, label = match[1], match[2]
        if prefix:
            _check_type(label, labels, where)
        if found and prefix and prefix not in BEGINS and label == found.label:
            found = found._replace(end=end)
            continue
        if found:
            yield found
        found = Entity(start, end, label) if prefix else None
    if found:
        yield found


def _check_type(label: str, labels: Labels, where: str) -> None:
    if label == OUTSIDE:
        raise InputError(f"{where}: a type of entity is named {OUTSIDE!r}, which is the tag of no entity; rename it")
    if labels.known:  # else they are yet to be learned
        labels.check(label, "type", where)


def read_entities(task: Task, path: Path, split: str, labels: Labels) -> Iterator[Example]:
    """Yield a text for every line of JSON: {type: {surface: [[start, last]]}}, or [start, end, type] and the like."""
    (key,) = task.text_keys
    for number, (where, record) in enumerate(json_lines(path)):
        text = text_field(record, key, where)
        name = task.label if task.label in record else "entities"
        given = record.get(name)
        if isinstance(given, dict):
            found = list(_by_type(given, text, name, where))
        elif isinstance(given, list):
            found = [_listed(entity, text, name, where) for entity in given]
        elif given is not None:
            raise InputError(f"{where}: {name} must be a list or an object, found {type(given).__name__}")
        elif split != "test":
            what = f"has nothing under {task.label!r} or 'entities'; an empty list says that there are no entities"
            raise InputError(f"{where}: {what}")
        entities = None if given is None else tuple(sorted(set(found)))
        for entity in entities or ():
            _check_type(entity.label, labels, where)
        yield Example(identity_of(record, ("id",), number, where), ((text, None),), entities=entities)


def _by_type(given: dict[str, Any], text: str, name: str, where: str) -> Iterator[Entity]:
    """Yield CLUENER's entities, whose ends are their last characters."""
    for label, surfaces in given.items():
        for surface, places in object_of(surfaces, where, f"{name}.{label}").items():
            if not isinstance(places, list):
                raise InputError(f"{where}: {name}: {shown(surface)} must have a list of [start, last character]")
            for place in places:
                if not isinstance(place, list) or len(place) != 2:
                    raise InputError(f"{where}: {name}: {shown(surface)} must have lists of [start, last character]")
                start, last = place
                yield _entity(start, last + 1 if type(last) is int else last, label, text, where, surface)


def _listed(given: Any, text: str, name: str, where: str) -> Entity:
    """Return doccano's entity: [start, end, type], or an object with those names or start_offset and end_offset."""
    if isinstance(given, list) and len(given) == 3:
        start, end, label = given
        return _entity(start, end, label, text, where)
    if not isinstance(given, dict):
        what = "must hold [start, end, type], or objects with these three"
        raise InputError(f"{where}: {name} {what}, found {shown(given)}")
    start, end = (given.get(side, given.get(f"{side}_offset")) for side in ("start", "end"))
    surface = given.get("text")
    return _entity(start, end, field(given, "label", str, where), text, where, surface)


def _entity(start: Any, end: Any, label: Any, text: str, where: str, surface: Any = None) -> Entity:
    """Return an entity after a look at the text. surface: what should stand there, if the file says so."""
    said = f"{where}: entity [{shown(start)}, {shown(end)}, {shown(label)}]"
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label.strip():
        raise InputError(f"{said}: must be two whole numbers, start and end, and a type")
    if not 0 <= start < end <= len(text):
        raise InputError(f"{said}: is not inside the text, which has {len(text):,} characters (the end excluded)")
    if surface is not None and text[start:end] != surface:
        raise InputError(f"{said}: {shown(text[start:end])} stands there, not {shown(surface)}")
    return Entity(start, end, label.strip())
