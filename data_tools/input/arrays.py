"""Elements of .json: an array of objects or texts, read as a stream. JSON lines under that name are lines."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from cmbert.errors import InputError
from cmbert.files.reading import BOM, MAX_LINE_BYTES
from data_tools.input.records import BadRecordError, Record
from data_tools.input.streams import READ_BYTES, check_magic, damages, text_stream
from data_tools.storage.files import InputFile, open_input

STRUCTURE = re.compile(rb'["\[\]{},]')
WITHIN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def begins_array(path: InputFile, raw: BinaryIO) -> bool:
    """Return whether a .json file holds an array; `raw` is at its beginning before and after.

    Raises InputError for a file of another kind.
    """
    head = text_stream(path, raw).read(READ_BYTES)
    raw.seek(0)
    check_magic(path, head)
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def may_be_array(path: InputFile) -> bool:
    """Return whether a .json file begins as an array, or is damaged: who reads it says so."""
    with open_input(path, until=0) as raw:
        try:
            return begins_array(path, raw)
        except InputError:
            return True
        except damages(path):
            return True


def array_records(path: InputFile, stream: BinaryIO) -> Iterator[Record]:
    """Yield the elements of the array that a file holds, one of more than MAX_LINE_BYTES as what is wrong with it.

    In memory is one element at a time. Raises InputError when the array does not end, or the file does not end with it.
    """
    for index, element in enumerate(_elements(path, stream)):
        too_long = BadRecordError("line_too_long", f"more than {MAX_LINE_BYTES} bytes; cut the document")
        yield Record(index, too_long if element is None else element, index + 1)


def _elements(path: InputFile, stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield the bytes of every element; None for one of more than MAX_LINE_BYTES."""
    buffer = bytearray(stream.read(READ_BYTES).removeprefix(BOM))
    begin = position = depth = count = 0  # position: what is before it has been looked at
    in_string = too_long = False
    while True:
        while position < len(buffer):
            if in_string:
                found = WITHIN_STRING.match(buffer, position)
                assert found is not None
                position = found.end()
                if not buffer.startswith(b'"', position):
                    break  # the string goes on, or the last byte is a backslash
            elif found := STRUCTURE.search(buffer, position):
                position = found.start()
            else:
                position = len(buffer)
                break
            mark = buffer[position : position + 1]
            in_string ^= mark == b'"'
            depth += (mark in b"[{") - (mark in b"]}")
            ends = depth == 0 or (depth == 1 and mark == b",")
            if ends and (count or mark == b"," or buffer[begin:position].strip() or too_long):
                yield None if too_long else bytes(buffer[begin:position])
                count += 1
            position += 1
            if ends or (depth == 1 and mark == b"["):
                begin, too_long = position, False
            if depth == 0:
                _only_blanks(path, buffer[position:], stream)
                return
        if position - begin > MAX_LINE_BYTES:
            too_long, begin = True, position
        del buffer[:begin]
        position, begin = position - begin, 0
        block = stream.read(READ_BYTES)
        if not block:
            raise InputError(f"{path}: damaged or truncated (its array does not end; {count:,} elements do)")
        buffer += block


def _only_blanks(path: InputFile, rest: bytes | bytearray, stream: BinaryIO) -> None:
    while not rest.strip():
        if not (rest := stream.read(READ_BYTES)):
            return
    raise InputError(f"{path}: damaged (something follows the end of its array)")
