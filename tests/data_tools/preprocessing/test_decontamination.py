"""What `clean --decontaminate` has done is in the manifest of the shards made from its texts, and in no other's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.data.shards.shard_set import ShardSet
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, DuplicatesConfig
from data_tools.preprocessing.merge import merge
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults

SENTENCES = [f"今天天气很好，我们去第{number}个公园看了很久的花。" for number in range(12)]
CONFIG = CleanConfig(duplicates=DuplicatesConfig(near=False))


@pytest.fixture
def cleaned(write_lines: Callable, tmp_path: Path) -> dict[str, Path]:
    """Text folders: cleaned against two sets, against one of them, against none; and raw text."""
    (tmp_path / "clue.txt").write_text(f"{SENTENCES[0]}\n{SENTENCES[1]}\n", encoding="utf-8")
    (tmp_path / "simclue.txt").write_text("这家酒店离地铁站很近，房间打扫得很干净。\n", encoding="utf-8")
    raw = write_lines("raw.jsonl", [{"text": text} for text in SENTENCES])
    sets = {"both": ("clue", "simclue"), "one": ("clue",), "none": ()}
    for name, own in sets.items():
        named = [str(tmp_path / f"{evaluation}.txt") for evaluation in own]
        clean([str(raw)], tmp_path / name, config=CONFIG, decontaminate=named)
    (tmp_path / "raw").mkdir()
    raw.rename(tmp_path / "raw/0.jsonl")
    (tmp_path / "raw/report.json").write_text('{"rows": 12}', encoding="utf-8")  # somebody else's
    return {name: tmp_path / name for name in (*sets, "raw")}


@pytest.mark.parametrize(
    ("inputs", "dropped"),
    [
        (["both"], {"clue": 2, "simclue": 0}),
        (["both", "one"], {"clue": 4}),
        (["both", "none"], None),
        (["one", "raw"], None),
        (["raw"], None),
    ],
)
def test_a_manifest_names_the_sets(
    inputs: list[str], dropped: dict | None, cleaned: dict[str, Path], tokenizer_directory: Path, tmp_path: Path
) -> None:
    preprocess([str(cleaned[name]) for name in inputs], tokenizer_directory, tmp_path / "all")
    assert ShardSet(tmp_path / "all").manifest.get("decontamination") == dropped
    for name in inputs:
        preprocess([str(cleaned[name])], tokenizer_directory, tmp_path / f"shards_{name}")
    merge([tmp_path / f"shards_{name}" for name in inputs], tmp_path / "merged")
    assert ShardSet(tmp_path / "merged").manifest.get("decontamination") == dropped
    assert not list(find_faults(tmp_path / "merged"))


def test_a_report_that_is_no_json_says_nothing(
    cleaned: dict[str, Path], tokenizer_directory: Path, tmp_path: Path
) -> None:
    report = json.loads((cleaned["one"] / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation_sets"] == {"clue": {"texts": 2, "documents": 2}}
    (cleaned["one"] / "report.json").write_text("{", encoding="utf-8")
    preprocess([str(cleaned["one"])], tokenizer_directory, tmp_path / "shards")
    assert "decontamination" not in ShardSet(tmp_path / "shards").manifest
