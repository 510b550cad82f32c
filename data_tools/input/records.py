"""A record -> a document, or the reason why it is none. Whatever a field holds, it costs one record and no run."""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from cmbert.files.reading import json_value, shown
from data_tools.input.document import Document

PLAIN_JSON = json.JSONDecoder(strict=False)  # as json_value reads it
ARRAY_ADVICE = "; one object a line, or name a file that is one array .json"


class BadRecordError(Exception):
    """A record without usable text; `reason` is the word it is counted under."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class Undecoded(bytes):
    """UTF-8 of a text column, to be decoded row by row: one row may be damaged."""


class Record(NamedTuple):
    """What may be a document: bytes of text or JSON, a row by column, or what is wrong with it."""

    start: int
    """Byte where it begins in the whole text, or its number from 0."""
    value: bytes | dict[str, Any] | BadRecordError
    number: int | None = None
    """Of the row or element, from 1; None where it is the line's, which is counted only when something is wrong."""


class Field(NamedTuple):
    """What is to be read of a record beside its text."""

    key: str
    """Its name; in tables within the record a.b."""
    is_number: bool


def document_of(value: dict[str, Any], text_key: str, name: str, source: str, fields: Sequence[Field] = ()) -> Document:
    """Return the document of a record; its "id" and "source" come before `name` and `source`. Raises BadRecordError."""
    text = _characters(value, text_key)
    if text is None:
        raise BadRecordError("no_text", f"no text under {text_key!r}")
    if "\0" in text:
        raise BadRecordError("nul_character", "the text holds a NUL character")
    number = value.get("id")
    if isinstance(number, int | float | Decimal):
        name = str(number)
    return Document(
        id=_characters(value, "id") or name,
        source=_characters(value, "source") or source,
        text=text,
        metadata=tuple(_metadata(value, field) for field in fields),
    )


def _metadata(value: dict[str, Any], field: Field) -> float | str:
    """Return a number, or anything else as text. Raises BadRecordError for what is missing, or is no number."""
    found: Any = value
    for name in [field.key] if field.key in value else field.key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, Undecoded):
        found = found.decode("utf-8", "replace")
    if not field.is_number and isinstance(found, str | int | float | Decimal):
        return str(found).lower() if isinstance(found, bool) else str(found)
    if isinstance(found, str | int | float | Decimal) and not isinstance(found, bool):
        try:
            number = float(found)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    wanted = "number" if field.is_number else "value"
    what = "" if found is None else f" but {shown(found)}"
    raise BadRecordError("no_metadata", f"no {wanted} under {field.key!r}{what} (see [[metadata]] in --config)")


def _characters(value: dict[str, Any], key: str) -> str | None:
    """Return what stands under `key` if it is text."""
    text = value.get(key)
    if isinstance(text, Undecoded):
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecordError("invalid_utf8", f"{key!r} is not valid UTF-8 at its byte {error.start}") from error
    if not isinstance(text, str):
        return None
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecordError("lone_surrogate", f"{key!r} holds half of a surrogate pair, no character") from error
    return text


def json_object(line: str, text_key: str = "") -> dict[str, Any]:
    """Return the object that a line of JSON holds; with text_key a text alone is one, too. Raises BadRecordError."""
    try:
        record = _plain_json(line)
    except ValueError as error:
        raise BadRecordError("not_json", f"not JSON ({error}){ARRAY_ADVICE if line.startswith('[') else ''}") from error
    if text_key and isinstance(record, str):
        return {text_key: record}
    if not isinstance(record, dict):
        raise BadRecordError("not_json", f"not a JSON object{ARRAY_ADVICE if isinstance(record, list) else ''}")
    return record


def _plain_json(line: str) -> Any:
    """Return what json_value does, which makes a decoder each time; it has the last word on what is refused here."""
    try:
        return PLAIN_JSON.decode(line)
    except (ValueError, RecursionError):
        return json_value(line)


def is_text_type(kind: Any) -> bool:
    """Return whether a column of a pyarrow type may hold texts; one of nulls alone has lost its type."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_null(kind) or _is_string(kind) or _is_binary(kind)


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def plain_values(column: Any, *, is_text: bool = False) -> list[Any]:
    """Return a column's texts as bytes, its integers as such, and None for everything else.

    is_text: bytes are texts, too: Spark and Impala write strings so.
    """
    import pyarrow
    from pyarrow import types

    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_string(column.type) or (is_text and _is_binary(column.type)):
        texts = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if text is None else Undecoded(text) for text in texts]
    return column.to_pylist() if types.is_integer(column.type) else [None] * len(column)
