"""What `clean` does to a text before it is judged."""

import html
import re
import unicodedata
from collections.abc import Callable

from data_tools.clean_config import NormalizeConfig

CONTROL = re.compile(  # all controls but tab and line feed; zero-width and bidirectional marks; half and no characters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)
LINE_END = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
KEPT_WIDE = "，：；！？（）～"  # Chinese punctuation by its width, not full-width ASCII
FOLD_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in KEPT_WIDE} | {0x3000: " "}
HTML_BLOCK = re.compile(r"<(script|style)\b[^>]{0,1000}>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
HTML_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr|/h[1-6])\b[^<>]{0,100}>", re.IGNORECASE)
HTML_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9:-]{0,30}(?:\s[^<>]{0,1000})?/?>")
URL = re.compile(r"(?:https?|ftp)://[\x21-\x7e]+|www\.[a-zA-Z0-9-]+\.[\x21-\x7e]+")
EMAIL = re.compile(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*\.[a-zA-Z]{2,}")
SPACES = re.compile("[ \t\xa0\u2000-\u200a\u202f\u205f\u3000]+")
BLANK_LINES = re.compile("\n{3,}")
LINE_EDGES = re.compile(" ?\n ?")
ACTIONS = {"keep": None, "remove": "", "replace": "<{}>"}


def normalizer(config: NormalizeConfig) -> Callable[[str], str]:
    """Return the function that does what `config` says."""
    replacements = [
        (pattern, action.format(name))
        for name, pattern, action in (
            ("url", URL, ACTIONS[config.urls]),
            ("email", EMAIL, ACTIONS[config.emails]),
        )
        if action is not None
    ]

    def normalize(text: str) -> str:
        text = LINE_END.sub("\n", text)
        if config.strip_html:
            text = strip_html(text)
        if config.fold_width:
            text = text.translate(FOLD_WIDTH)
        text = CONTROL.sub("", unicodedata.normalize("NFC", text))
        for pattern, replacement in replacements:
            text = pattern.sub(replacement, text)
        return squeeze(text) if config.squeeze_spaces else text

    return normalize


def strip_html(text: str) -> str:
    """Return `text` with its entities as characters and without tags, comments, scripts and styles."""
    text = html.unescape(text) if "&" in text else text
    return HTML_TAG.sub("", HTML_BREAK.sub("\n", HTML_BLOCK.sub("", text))) if "<" in text else text


def squeeze(text: str) -> str:
    """Return `text` with single spaces, at most one blank line at a time, and no space at the edges of a line."""
    return BLANK_LINES.sub("\n\n", LINE_EDGES.sub("\n", SPACES.sub(" ", text))).strip()
