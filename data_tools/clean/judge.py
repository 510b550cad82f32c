"""What is decided of a document by itself: whether it stays, and its text as it is written."""

from pathlib import Path
from typing import Any

from data_tools.clean.config import CleanConfig
from data_tools.clean.drops import Drops
from data_tools.clean.text.decodability import damage
from data_tools.clean.text.letters import HeldOutTexts, canonical_letters, heldout_key
from data_tools.clean.text.markup import strip_html
from data_tools.clean.text.normalization import Removed, normalizer
from data_tools.clean.text.quality import drop_reason, measured
from data_tools.input.document import Document


def is_held_out(text: str, share: float) -> bool:
    """Return whether a text is in the held-out share: by its letters alone, whatever else is cleaned."""
    return heldout_key(canonical_letters(text)) < share * 2**64


class Judge:
    """The rules, in order, the cheap ones first; counts what it drops and what it takes out of texts.

    only_heldout: keep the held-out share alone. held_out_texts: folder of texts nothing may be near to (letters.py).
    """

    def __init__(self, config: CleanConfig, *, only_heldout: bool = False, held_out_texts: Path | None = None):
        self.config, self.only_heldout = config, only_heldout
        self.held_out_texts = HeldOutTexts(held_out_texts) if held_out_texts else None
        self.normalize = normalizer(config.normalize)
        self.drops = Drops()
        self.removed: dict[str, Removed] = {}

    def __call__(self, document: Document) -> Document | None:
        """Return the document with its source's name and its text normalised, or None if it is dropped."""
        document = document._replace(source=self.config.source or document.source)
        if self.only_heldout and not is_held_out(document.text, self.config.heldout_share):
            return None
        plain = strip_html(document.text, lambda *_: None) if self.config.normalize.strip_html else document.text
        if reason := damage(plain, self.config.quality):
            self._drop(document, reason, measured=round(measured(plain, reason), 4))
            return None
        removed = self.removed.setdefault(document.source, Removed())
        document = document._replace(text=self.normalize(document.text, removed))
        if reason := drop_reason(document.text, self.config.quality):
            self._drop(document, reason, measured=round(measured(document.text, reason), 4))
            return None
        if self.held_out_texts and (reason := self.held_out_texts.relation(document.text)):
            self._drop(document, reason)
            return None
        return document

    def as_record(self) -> dict[str, Any]:
        """Return what was dropped, and taken out of texts, for the report."""
        removed = {source: vars(counts) for source, counts in self.removed.items()}
        return {"dropped": self.drops.as_record(), "removed": removed}

    def _drop(self, document: Document, reason: str, **known: Any) -> None:
        if self.drops.count(document.source, reason):
            self.drops.sample(document, reason, **known)
