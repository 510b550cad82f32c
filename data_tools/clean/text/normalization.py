"""What `clean` does to a text before it is judged."""

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np
from tokenizers import normalizers

from data_tools.clean.config import SAMPLE_CHARACTERS, SAMPLES, NormalizeConfig
from data_tools.clean.text.characters import CODE_POINT, code_points, text_of
from data_tools.clean.text.compatibility import ANY, FOLDED, fold_compatibility
from data_tools.clean.text.decodability import UNDECODABLE
from data_tools.clean.text.kernels import (
    ANYTHING,
    BLANK,
    COMPATIBILITY,
    CONTROL_GOES,
    EMAIL_SIGN,
    NOT_INERT,
    UNDECODABLE_GOES,
    URL_SIGN,
    rewritten,
    squeezed,
)
from data_tools.clean.text.markup import strip_html
from data_tools.encoding.encoders import INERT_CHARACTERS

CONTROL = re.compile(  # all controls but tab and line feed; zero-width and bidirectional marks; half and no characters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)
LINE_END = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")  # and \r\n
KEPT_WIDE = "，：；！？（）～"  # Chinese punctuation by its width, not full-width ASCII
FOLD_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in KEPT_WIDE} | {0x3000: " "}
URL = re.compile(r"(?:https?|ftp)://[\x21-\x7e]+|www\.[a-zA-Z0-9-]+\.[\x21-\x7e]+")
URL_SIGNS, EMAIL_SIGNS = ("://", "www."), ("@",)  # one is in every match
NAME, HOST = "[a-zA-Z0-9._%+-]", r"[a-zA-Z0-9-]++(?:\.[a-zA-Z0-9-]+)*\.[a-zA-Z]{2,}"
EMAIL = re.compile(rf"(?<!{NAME})(?>{NAME}++@{HOST})(?>{NAME}++@{HOST})*+")  # from the first of NAME on, so linear
BLANKS = re.compile("[ \t\xa0\u2000-\u200a\u202f\u205f\u3000]")
ACTIONS = {"keep": None, "remove": "", "replace": "<{}>"}

NFC = normalizers.NFC()
BEYOND_INERT = re.compile(f"[^{INERT_CHARACTERS}]")  # of the others alone, a text is NFC
STACKED = re.compile(f"[^{INERT_CHARACTERS}]{{64}}")  # what Python's NFC takes quadratic time for: marks upon marks
QUOTED = {"html_tag", "html_block", *FOLDED} - {"folded_space"}  # not people's addresses


class Removed:
    """What normalisation took out or replaced: pieces and characters by kind; of QUOTED kinds the first samples."""

    def __init__(self) -> None:
        self.pieces: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}

    def count(self, kind: str, pieces: int, characters: int) -> None:
        """Count pieces, of so many characters together."""
        self.pieces[kind] += pieces
        self.characters[kind] += characters

    def note(self, kind: str, piece: str, around: str = "") -> None:
        """Count a piece. `around`: what is to be quoted instead."""
        self.count(kind, 1, len(piece))
        if kind in QUOTED:
            samples = self.samples.setdefault(kind, [])
            if len(samples) < SAMPLES:
                samples.append((around or piece)[:SAMPLE_CHARACTERS])


def normalizer(config: NormalizeConfig) -> Callable[..., str]:
    """Return the function of a text, and of a `Removed` that is to count, that does what `config` says.

    Its time is linear in the text.
    """
    replacements = [
        (kind, signs, pattern, action.format(kind))
        for kind, signs, pattern, action in (
            ("url", URL_SIGNS, URL, ACTIONS[config.urls]),
            ("email", EMAIL_SIGNS, EMAIL, ACTIONS[config.emails]),
        )
        if action is not None
    ]

    recomposed = NOT_INERT | COMPATIBILITY * config.fold_compatibility
    waits = recomposed | EMAIL_SIGN * (config.emails != "keep")
    waits |= URL_SIGN * (config.urls != "keep")
    if not config.squeeze_spaces:
        waits = ANYTHING

    def normalize(text: str, removed: Removed | None = None) -> str:
        removed = removed or Removed()
        if config.strip_html:
            text = strip_html(text, removed.note)
        codes = code_points(text)
        out = np.empty(len(codes), CODE_POINT)
        length, undecodable, controls, found, is_changed = rewritten(codes, rewriting(config.fold_width), waits, out)
        text = text_of(out[:length]) if is_changed else text
        if undecodable:
            removed.count("undecodable_character", undecodable, undecodable)
        if found & recomposed:  # after controls are gone: an accent may have come to stand behind its letter
            text = nfc(fold_compatibility(text, removed.note) if config.fold_compatibility else text)
        if controls:
            removed.count("control_character", controls, controls)
        if not found & waits:
            return text.strip()
        for kind, signs, pattern, replacement in replacements:
            if any(sign in text for sign in signs):
                text = replace(pattern, text, replacement, kind, removed)
        return squeeze(text) if config.squeeze_spaces else text

    return normalize


@functools.cache
def rewriting(fold_width: bool) -> np.ndarray:
    """Return what kernels.rewritten makes of every code point, shape (1114112,), uint32."""
    table, every = np.arange(sys.maxunicode + 1, dtype=np.uint32), "".join(map(chr, range(sys.maxunicode + 1)))

    def places(pattern: re.Pattern[str]) -> np.ndarray:
        spans = [found.span() for found in re.finditer(f"(?:{pattern.pattern})+", every)]
        return np.concatenate([np.arange(*span) for span in spans])

    for pattern, bit in ((ANY, COMPATIBILITY), (BEYOND_INERT, NOT_INERT), (BLANKS, BLANK)):
        table[places(pattern)] |= bit
    for signs, bit in ((URL_SIGNS, URL_SIGN), (EMAIL_SIGNS, EMAIL_SIGN)):
        table[[ord(sign[-1]) for sign in signs]] |= bit
    for pattern, entry in ((CONTROL, CONTROL_GOES), (UNDECODABLE, UNDECODABLE_GOES), (LINE_END, ord("\n"))):
        table[places(pattern)] = entry
    if fold_width:
        table[list(FOLD_WIDTH)] = table[[ord(to) if isinstance(to, str) else to for to in FOLD_WIDTH.values()]]
    return table


def nfc(text: str) -> str:
    """Return Unicode NFC of `text`, in linear time also of thousands of marks on one letter."""
    return NFC.normalize_str(text) if STACKED.search(text) else unicodedata.normalize("NFC", text)


def replace(pattern: re.Pattern[str], text: str, replacement: str, kind: str, removed: Removed) -> str:
    """Return `text` with `replacement` for each match, counted under `kind`."""

    def counted(found: re.Match[str]) -> str:
        removed.note(kind, found[0])
        return replacement

    return pattern.sub(counted, text)


def squeeze(text: str) -> str:
    """Return `text` with single spaces, at most one blank line at a time, and no space at the edges of a line."""
    codes = code_points(text).copy()
    length, is_changed = squeezed(codes, len(codes), rewriting(True))
    return (text_of(codes[:length]) if is_changed else text).strip()
