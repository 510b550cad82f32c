"""What is decided of a document by itself: whether it stays, and its text as it is written."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.clean.config import SAMPLE_CHARACTERS, CleanConfig, MetadataRule
from data_tools.clean.drops import Drops
from data_tools.clean.text.contamination import EvaluationTexts
from data_tools.clean.text.decodability import damage
from data_tools.clean.text.letters import HeldOutTexts, canonical_letters, heldout_key
from data_tools.clean.text.markup import strip_html
from data_tools.clean.text.normalization import Removed, normalizer
from data_tools.clean.text.quality import drop_reason, measured
from data_tools.input.document import Document, Purpose, text_hash


def is_held_out(text: str, share: float) -> bool:
    """Return whether a text is in the held-out share: by its letters alone, whatever else is cleaned."""
    return heldout_key(canonical_letters(text)) < share * 2**64


def broken_rule(document: Document, rules: Sequence[MetadataRule]) -> tuple[str, float | str] | None:
    """Return the key of the first rule on its metadata that drops a document, and what stands there; None if it stays.

    Of several rules it breaks the smallest share holds: they choose by one hash.
    """
    for rule, value in zip(rules, document.metadata, strict=True):
        breaks = value not in rule.values if isinstance(value, str) else not rule.min <= value <= rule.max
        if breaks and text_hash(document.text, Purpose.CLEAN_METADATA) >= rule.share * 2**64:
            return rule.key, value
    return None


class Judge:
    """The rules, in order, the cheap ones first; counts what it drops and what it takes out of texts.

    only_heldout: keep the held-out share alone. held_out_texts: folder of texts nothing may be near to (letters.py).
    evaluation_texts: folder of texts nothing may hold (contamination.py).
    """

    def __init__(
        self,
        config: CleanConfig,
        *,
        only_heldout: bool = False,
        held_out_texts: Path | None = None,
        evaluation_texts: Path | None = None,
    ):
        self.config, self.only_heldout = config, only_heldout
        self.held_out_texts = HeldOutTexts(held_out_texts) if held_out_texts else None
        self.evaluation_texts = EvaluationTexts(evaluation_texts) if evaluation_texts else None
        self.contaminated: Counter[str] = Counter()
        self.normalize = normalizer(config.normalize)
        self.drops = Drops()
        self.removed = defaultdict[str, Removed](Removed)

    def __call__(self, document: Document) -> Document | None:
        """Return the document with its source's name and its text normalised, or None if it is dropped."""
        if self.config.source:
            document = document._replace(source=self.config.source)
        if self.only_heldout and not is_held_out(document.text, self.config.heldout_share):
            return None
        if broken := broken_rule(document, self.config.metadata):
            self._drop(document, f"metadata_{broken[0]}", measured=broken[1])
            return None
        plain = strip_html(document.text, lambda *_: None) if self.config.normalize.strip_html else document.text
        if reason := damage(plain, self.config.quality):
            self._drop_measured(document, reason, plain)
            return None
        document = document._replace(text=self.normalize(document.text, self.removed[document.source]))
        if reason := drop_reason(document.text, self.config.quality):
            self._drop_measured(document, reason, document.text)
            return None
        if self.held_out_texts and (reason := self.held_out_texts.relation(document.text)):
            self._drop(document, reason)
            return None
        return None if self._is_contaminated(document) else document

    def _is_contaminated(self, document: Document) -> bool:
        share = self.config.contamination.min_share
        found = self.evaluation_texts.find(document.text, share) if self.evaluation_texts else None
        if found is None:
            return False
        self.contaminated.update(found.sets)
        self._drop(
            document, "contaminated", sets=found.sets, run=found.run[:SAMPLE_CHARACTERS], share=round(found.share, 4)
        )
        return True

    def as_record(self) -> dict[str, Any]:
        """Return what was dropped, and taken out of texts, for the report."""
        removed = {source: vars(counts) for source, counts in self.removed.items()}
        return {"dropped": self.drops.as_record(), "removed": removed, "contaminated": self.contaminated}

    def _drop_measured(self, document: Document, reason: str, text: str) -> None:
        if self.drops.count(document.source, reason):
            self.drops.sample(document, reason, measured=round(measured(text, reason), 4))

    def _drop(self, document: Document, reason: str, **known: Any) -> None:
        if self.drops.count(document.source, reason):
            self.drops.sample(document, reason, **known)
