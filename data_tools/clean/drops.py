"""What was dropped in a task: counted by source and reason, with the first samples."""

from collections import Counter
from typing import Any

from data_tools.clean.config import SAMPLE_CHARACTERS, SAMPLES
from data_tools.input.document import Document


class Drops:
    """Counts and samples. A sample: id, the text's start, and what else is known of it."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.samples: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def count(self, source: str, reason: str) -> bool:
        """Count one document; return whether a sample of it is wanted."""
        self.counts.setdefault(source, Counter())[reason] += 1
        return len(self.samples.setdefault(source, {}).setdefault(reason, [])) < SAMPLES

    def sample(self, document: Document, reason: str, **known: Any) -> None:
        """Keep a sample of a document that was counted."""
        sample = {"id": document.id, "text": document.text[:SAMPLE_CHARACTERS], **known}
        self.samples[document.source][reason].append(sample)

    def as_record(self) -> dict[str, Any]:
        """Return what `report.sum_drops` takes."""
        return {"counts": self.counts, "samples": self.samples}
