"""What `clean` does to a text before it is judged."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from tokenizers import normalizers

from data_tools.clean.config import SAMPLE_CHARACTERS, SAMPLES, NormalizeConfig
from data_tools.clean.text.compatibility import FOLDED, fold_compatibility
from data_tools.clean.text.decodability import MAYBE_UNDECODABLE, UNDECODABLE
from data_tools.clean.text.markup import strip_html
from data_tools.encoding.encoders import INERT_CHARACTERS

CONTROL = re.compile(  # all controls but tab and line feed; zero-width and bidirectional marks; half and no characters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)
LINE_END = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
KEPT_WIDE = "，：；！？（）～"  # Chinese punctuation by its width, not full-width ASCII
FOLD_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in KEPT_WIDE} | {0x3000: " "}
URL = re.compile(r"(?:https?|ftp)://[\x21-\x7e]+|www\.[a-zA-Z0-9-]+\.[\x21-\x7e]+")
NAME, HOST = "[a-zA-Z0-9._%+-]", r"[a-zA-Z0-9-]++(?:\.[a-zA-Z0-9-]+)*\.[a-zA-Z]{2,}"
EMAIL = re.compile(rf"(?<!{NAME})(?>{NAME}++@{HOST})(?>{NAME}++@{HOST})*+")  # from the first of NAME on, so linear
SPACES = re.compile("[ \t\xa0\u2000-\u200a\u202f\u205f\u3000]+")
BLANK_LINES = re.compile("\n{3,}")
LINE_EDGES = re.compile(" ?\n ?")
ACTIONS = {"keep": None, "remove": "", "replace": "<{}>"}


NFC = normalizers.NFC()
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
        (kind, sign, pattern, action.format(kind))
        for kind, sign, pattern, action in (
            ("url", "", URL, ACTIONS[config.urls]),
            ("email", "@", EMAIL, ACTIONS[config.emails]),
        )
        if action is not None
    ]

    def normalize(text: str, removed: Removed | None = None) -> str:
        removed = removed or Removed()
        if config.strip_html:
            text = strip_html(text, removed.note)
        text = LINE_END.sub("\n", text)
        if config.fold_width:
            text = text.translate(FOLD_WIDTH)
        if MAYBE_UNDECODABLE.search(text):
            text = replace(UNDECODABLE, text, "", "undecodable_character", removed)
        text, count = CONTROL.subn("", text)  # before NFC: an accent may come to stand behind its letter
        if config.fold_compatibility:
            text = fold_compatibility(text, removed.note)
        text = nfc(text)
        if count:
            removed.count("control_character", count, count)
        for kind, sign, pattern, replacement in replacements:
            text = replace(pattern, text, replacement, kind, removed) if sign in text else text
        return squeeze(text) if config.squeeze_spaces else text

    return normalize


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
    return BLANK_LINES.sub("\n\n", LINE_EDGES.sub("\n", SPACES.sub(" ", text))).strip()
