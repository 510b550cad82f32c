"""The configurations of recipes/large: what real files have gets mended or dropped; the rules they suggest work."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, load_clean_config
from tests.data_tools.clean.test_decontaminate import document, report_of, sentence
from tests.data_tools.clean.test_heldout import CORPORA, LARGE
from tests.data_tools.clean.test_metadata import kept
from tests.data_tools.clean.texts import LONG

SUGGESTED = re.compile(r"^# (?=\[\[metadata\]\]|\w+ = )", re.MULTILINE)


@pytest.mark.parametrize("name", CORPORA)
def test_damage_is_mended_or_dropped(name: str, write_lines: Callable, tmp_path: Path) -> None:
    item = sentence(1)
    records = [
        {"text": LONG.replace("今天", "今⽇")},  # a radical, as PDF files have it
        {"text": "⻅到" + document(1) + "面积３㎡，\ufffd共\ue000两处。"},
        {"text": document(2) + "\ufffd" * 10},
        {"text": document(3).encode("utf-8").decode("latin-1")},
        {"text": document(4) + item + document(5)},
    ]
    (tmp_path / "clue").mkdir()
    (tmp_path / "clue/dev.json").write_text(json.dumps({"sentence": item}), encoding="utf-8")
    config = load_clean_config(LARGE / "clean" / f"{name}.toml")
    raw = write_lines("raw.jsonl", records)
    clean([str(raw)], tmp_path / "text", config=config, decontaminate=[str(tmp_path / "clue")])
    assert kept(tmp_path / "text") == {LONG.replace("今天", "今日"), "见到" + document(1) + "面积3m²，共两处。"}
    report = report_of(tmp_path / "text")
    assert report["dropped"][name] == {"undecodable": 1, "mojibake": 1, "contaminated": 1}
    assert report["removed"][name]["pieces"]["folded_radical"] == 2
    assert report["removed"][name]["pieces"]["undecodable_character"] == 2


def suggested(name: str, folder: Path) -> CleanConfig:
    """Return a configuration with the rules that stand in its comments."""
    text, count = SUGGESTED.subn("", (LARGE / "clean" / f"{name}.toml").read_text(encoding="utf-8"))
    assert count == 4
    (folder / "clean.toml").write_text(text, encoding="utf-8")
    return load_clean_config(folder / "clean.toml")


@pytest.mark.parametrize(
    ("name", "good", "bad", "reason"),
    [
        ("cci3_hq", {"score": 3.2}, {"score": 2.3}, "metadata_score"),
        ("cosmopedia_zh", {"data_format": "wikihow"}, {"data_format": "normal story"}, "metadata_data_format"),
    ],
)
def test_suggested_rules(name: str, good: dict, bad: dict, reason: str, write_lines: Callable, tmp_path: Path) -> None:
    records = [{"id": str(i), "text": document(i), **(good if i < 10 else bad)} for i in range(90)]
    config = suggested(name, tmp_path)
    clean([str(write_lines("raw.jsonl", records))], tmp_path / "text", config=config)
    texts = kept(tmp_path / "text")
    assert {document(i) for i in range(10)} <= texts
    share = config.metadata[0].share
    assert abs(len(texts) - 10 - 80 * share) < 4 * (80 * share * (1 - share)) ** 0.5
    assert report_of(tmp_path / "text")["dropped"][name] == {reason: 90 - len(texts)}
