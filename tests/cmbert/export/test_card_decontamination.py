"""The card says for each source which evaluation sets were looked for in it, or that none is on record."""

from types import SimpleNamespace
from typing import Any

from cmbert.export.card import _decontamination
from cmbert.export.lineage import TrainedSource


def said(*sources: tuple[str, dict[str, int] | None]) -> str:
    trained = [TrainedSource(name, 1.0, 9, 90, 90, {}, dropped) for name, dropped in sources]
    lineage: Any = SimpleNamespace(stages=[SimpleNamespace(sources=trained), SimpleNamespace(sources=trained)])
    return _decontamination(lineage)


def test_what_was_looked_for_is_named_once() -> None:
    text = said(("cci3_hq", {"clue": 1234, "simclue": 0}), ("web", None), ("notes", None))
    assert text.count("cci3_hq was decontaminated against clue, simclue:") == 1
    assert "(clue 1,234, simclue 0)" in text
    assert text.count("No decontamination is on record for web, notes: evaluation texts may be in it.") == 1


def test_nothing_unknown_is_not_said() -> None:
    assert "on record" not in said(("cci3_hq", {"clue": 1}))
