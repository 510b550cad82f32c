"""An example, and the fields of a record that it is made of: each there and of its kind, or one line of error."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from cmbert.errors import InputError
from cmbert.files.reading import checked_text, shown

KINDS: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
KEPT_BACK = ("", "-1")  # what test files say in place of an answer


class Entity(NamedTuple):
    """A stretch of a text and its type."""

    start: int
    """First character."""
    end: int
    """The character after the last."""
    label: str


@dataclass(frozen=True)
class Example:
    """One question to the model."""

    id: str
    """As in the file, or its number there, from 0."""
    parts: tuple[tuple[str, str | None], ...]
    """Texts to read, each alone or as a pair; several for multiple choice."""
    label: int | None = None
    """Index of the label or of the right choice; None where the file does not say."""
    answers: tuple[str, ...] = ()
    """Span tasks: the answers that count as right."""
    answer_start: int = -1
    """Span tasks: where the answer to learn begins in the second text of the part, characters; -1 = not there."""
    answer_end: int = -1
    """Likewise, where it ends."""
    kept: tuple[int, int] | None = None
    """Characters of each part's last text that no cut may take away: ChID's blank, CLUEWSC's noun and pronoun."""
    labels: tuple[int, ...] | None = None
    """Several labels to a text: the indices of those it has, in order; None where the file does not say."""
    value: float | None = None
    """Regression: the number; likewise."""
    entities: tuple[Entity, ...] | None = None
    """Entities of the text, each once, in order; likewise."""

    @property
    def labelled(self) -> bool:
        """Return whether the file says what is right."""
        told = (self.label, self.labels, self.value, self.entities)
        return bool(self.answers) or any(answer is not None for answer in told)


def field(record: Any, key: str, kind: type, where: str) -> Any:
    """Return a field that must be there and of the right kind; `where` names file and line for an InputError."""
    value = object_of(record, where, "it").get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        fields = f"none; fields: {', '.join(record)}"
        found = shown_names(fields) if value is None else type(value).__name__
        raise InputError(f"{where}: {key} must be {KINDS[kind]}, found {found}")
    return value


def shown_names(names: str) -> str:
    """Return names as a line of error shows them: printable, 100 characters of them."""
    return "".join(char if char.isprintable() else "?" for char in names[:100])


def object_of(value: Any, where: str, what: str) -> dict[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: {what} must be an object, found {type(value).__name__}")
    return value


def text_field(record: Any, key: str, where: str) -> str:
    """Return a text that must be there and have something in it."""
    return checked_text(field(record, key, str, where), key, where)


def texts_field(record: Any, key: str, where: str) -> list[str]:
    """Return a list of texts that must be there and have something in it."""
    return checked_texts(field(record, key, list, where), key, where)


def checked_texts(value: Any, name: str, where: str) -> list[str]:
    """Return a list of texts of which one must have something in it."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: {name} must be a list of text")
    checked_text("".join(value), name, where)
    return value


def identity_of(record: dict[str, Any], keys: tuple[str, ...], number: int, where: str) -> str:
    """Return the id that stands under the first of `keys` that has one, as text, or `number`."""
    for key in keys:
        value = record.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            raise InputError(f"{where}: {key} must be text or a whole number, found {type(value).__name__}")
        return str(value)
    return str(number)


def label_text(value: Any, key: str, where: str) -> str:
    """Return a label as JSON spells it, without white space around it; "" for null."""
    if isinstance(value, list | dict):
        raise InputError(f"{where}: {key} must be text or a number, found {type(value).__name__}")
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value).strip()


def label_texts(value: Any, key: str, separator: str, where: str) -> tuple[str, ...] | None:
    """Return several labels, each once: of a list, or of a text with a separator between them; None for null."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.split(separator) if value.strip() else []
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} must be a list of labels, found {type(value).__name__}")
    found = tuple(dict.fromkeys(label_text(label, f"a label of {key}", where) for label in value))
    if "" in found:
        raise InputError(f"{where}: a label of {key} is empty")
    return found


def number_of(value: Any, key: str, where: str) -> float | None:
    """Return a number, also if it stands there as text; None for null or an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise InputError(f"{where}: {key} must be a number, found {type(value).__name__}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {key} must be a finite number, found {shown(value)}")
    return number


@dataclass(frozen=True)
class Labels:
    """The labels that an answer may have, and who says so."""

    known: tuple[str, ...]
    whose: str
    """As a line of error names them: "tnews's"."""
    remedy: str = ""
    """What to do about another one, for that line."""

    def check(self, label: str, key: str, where: str) -> None:
        """Raise InputError if it is none of them."""
        if label not in self.known:
            listed = shown_names(", ".join(self.known[:6])) + (", ..." if len(self.known) > 6 else "")
            remedy = f"; {self.remedy}" if self.remedy else ""
            raise InputError(f"{where}: {key} {shown(label)} is not one of {self.whose}: {listed}{remedy}")
