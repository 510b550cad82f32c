"""What every code point is, as tables; nothing is compiled here."""

import functools
import sys

import numpy as np

CODE_POINT = np.dtype("<u4")
OTHER, HANZI, SPACE, DIGIT, LETTER = range(5)  # what a character is; OTHER: punctuation and symbols
KIND, ENDS_LINE = 0x07, 0x08  # in the table of kinds: what it is; whether a line that ends in it has ended
NO_LETTER, BY_PYTHON = 0, 0xFFFFFFFF  # in a table of letters; the second: what it becomes is no matter of it alone
LINE_ENDS = "。！？；…：，、”』」》）.!?;:,)\"'"
FIRST_WITHOUT_CLASS = 0x40000  # no code point from here on is a letter, digit or space
HANZI_RANGES = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


def code_points(text: str) -> np.ndarray:
    """Return the characters of `text` as numbers, shape (characters,), uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=CODE_POINT)


def text_of(codes: np.ndarray) -> str:
    """Return the text of such numbers: code_points backwards."""
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def character_classes() -> np.ndarray:
    """Return the class of every code point, OTHER to LETTER, shape (1114112,), uint8."""
    classes = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code, character in enumerate(map(chr, range(FIRST_WITHOUT_CLASS))):
        if character.isspace():
            classes[code] = SPACE
        elif character.isdigit():
            classes[code] = DIGIT
        elif character.isalpha():
            classes[code] = LETTER
    for first, last in HANZI_RANGES:
        classes[first : last + 1] = HANZI
    return classes


@functools.cache
def character_kinds() -> np.ndarray:
    """Return the class of every code point, with ENDS_LINE if a line may end in it, shape (1114112,), uint8."""
    kinds = character_classes().copy()
    kinds[list(map(ord, LINE_ENDS))] |= ENDS_LINE
    return kinds


def is_hanzi(codes: np.ndarray) -> np.ndarray:
    """Return which code points are Hanzi, shape of `codes`, bool."""
    found: np.ndarray = character_classes()[codes] == HANZI
    return found
