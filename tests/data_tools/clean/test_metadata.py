"""[[metadata]] rules: fields of JSON, tables and parquet; what is dropped is counted, a share of it stays."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cmbert.errors import ConfigError, InputError
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, MetadataRule, load_clean_config
from data_tools.clean.judge import broken_rule
from data_tools.input.document import Document
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from tests.data_tools.clean.test_decontaminate import document, report_of

RULES = """
[[metadata]]
key = "score"
min = 3.0
[[metadata]]
key = "info.level"
values = ["high", "4"]
"""


@pytest.fixture
def config(tmp_path: Path) -> CleanConfig:
    (tmp_path / "clean.toml").write_text(RULES, encoding="utf-8")
    return load_clean_config(tmp_path / "clean.toml")


def kept(folder: Path) -> set[str]:
    return {found.text for found in DocumentReader(whole_files(input_files([str(folder)])))}


RECORDS = [
    ({"score": 4.5, "info": {"level": "high"}}, None),
    ({"score": "3", "info": {"level": 4}}, None),
    ({"score": 2.99, "info": {"level": "high"}}, "metadata_score"),
    ({"score": -1, "info": {"level": "low"}}, "metadata_score"),
    ({"score": 3, "info.level": "high", "info": {"level": "low"}}, None),
    ({"score": 3, "info": {"level": True}}, "metadata_info.level"),
]


def test_rules_on_json(config: CleanConfig, write_lines: Callable, tmp_path: Path) -> None:
    records = [{"text": document(i), **fields} for i, (fields, _) in enumerate(RECORDS)]
    clean([str(write_lines("a.jsonl", records))], tmp_path / "clean", config=config)
    assert kept(tmp_path / "clean") == {document(i) for i, (_, reason) in enumerate(RECORDS) if reason is None}
    report = report_of(tmp_path / "clean")
    assert report["dropped"]["a"] == {"metadata_score": 2, "metadata_info.level": 1}
    assert [sample["measured"] for sample in report["samples"]["a"]["metadata_score"]] == [2.99, -1.0]
    page = (tmp_path / "clean/report.html").read_text(encoding="utf-8")
    for said in ("less than 3 under score", "anything but high, 4 under info.level", "2.99 under score", "true under"):
        assert said in page
    clean([str(tmp_path / "a.jsonl")], tmp_path / "clean", config=config)  # done already


def test_rules_on_tables_and_parquet(tmp_path: Path) -> None:
    scores, texts = [1.5, 3.0, 9.25], [document(i) for i in range(3)]
    lines = ["text,score", *(f"{text},{score}" for text, score in zip(texts, scores, strict=True))]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    infos = [{"level": level, "by": 1.0} for level in ("high", "low", None)]
    table = pyarrow.table({"text": texts, "score": scores, "bucket": [1, 2, 3], "info": infos})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rules = {
        MetadataRule(key="score", min=2.0, max=9.0): [1],
        MetadataRule(key="bucket", values=("1", "3")): [0, 2],
        MetadataRule(key="info.by", max=1.0): [0, 1, 2],
    }
    for number, (rule, stays) in enumerate(rules.items()):
        for name in ("a.csv", "a.parquet")[rule.key != "score" :]:
            output = tmp_path / f"{name}.{number}"
            clean([str(tmp_path / name)], output, config=CleanConfig(metadata=(rule,)))
            assert kept(output) == {texts[i] for i in stays}
    config = CleanConfig(metadata=(MetadataRule(key="info.level", values=("high", "low")),))
    with pytest.raises(InputError, match=r"a.parquet:3: no value under 'info.level' \(see \[\[metadata\]\] in"):
        clean([str(tmp_path / "a.parquet")], tmp_path / "no", config=config)


def test_a_share_stays_by_the_text_alone() -> None:
    def stays(share: float, value: float = 0.0) -> set[int]:
        rule = MetadataRule(key="score", min=1.0, share=share)
        return {i for i in range(3_000) if not broken_rule(Document("", "", f"第{i}篇", (value,)), [rule])}

    assert len(stays(0.0)) == 0
    assert len(stays(0.0, 1.0)) == 3_000
    assert 1_390 < len(stays(0.5)) < 1_610  # 1,500 are due, four standard deviations
    assert stays(0.2) < stays(0.5)
    rules = [MetadataRule(key="a", min=1.0, share=0.5), MetadataRule(key="b", min=1.0, share=0.2)]
    both = {i for i in range(3_000) if not broken_rule(Document("", "", f"第{i}篇", (0.0, 0.0)), rules)}
    assert both == stays(0.2)


def test_a_record_without_the_field_is_a_bad_line(config: CleanConfig, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = {"text": document(0), "score": 4, "info": {"level": "high"}}
    for fields, message in (
        ({"info": {"level": "high"}}, r"a.jsonl:2: no number under 'score' \(see .* \(--on-bad-line skip counts"),
        ({"score": "高", "info": {"level": "high"}}, "no number under 'score' but '高'"),
        ({"score": float("nan"), "info": {"level": "high"}}, "no number under 'score' but nan"),
        ({"score": True}, "no number under 'score' but True"),
        ({"score": 10**400}, "no number under 'score' but 1"),
        ({"score": 4, "info": "high"}, r"no value under 'info.level' \("),
        ({"score": 4, "info": {"level": ["high"]}}, r"no value under 'info.level' but \['high'\]"),
    ):
        bad = {"text": document(1), **fields}
        path.write_text("\n".join(json.dumps(record) for record in (good, bad)), encoding="utf-8")
        with pytest.raises(InputError, match=message):
            clean([str(path)], tmp_path / "clean", config=config)
    (tmp_path / "clean.toml").write_text(f'on_bad_line = "skip"\n{RULES}', encoding="utf-8")
    clean([str(path)], tmp_path / "clean", config=load_clean_config(tmp_path / "clean.toml"))
    assert report_of(tmp_path / "clean")["skipped_lines"] == {"no_metadata": 1}


def test_configuration_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "clean.toml"
    for text, message in (
        ('[metadata]\nkey = "score"\n', r"metadata: must be a list \(\[\[metadata\]\] tables\)"),
        ("[[metadata]]\nmin = 3\n", r"metadata\[0\].key: missing key"),
        ('[[metadata]]\nkey = "score"\nvalue = "a"\n', r"metadata\[0\].value: unknown key; did you mean 'values'"),
        ('[[metadata]]\nkey = ""\nmin = 3\n', r"metadata\[0\].key: is empty"),
        ('[[metadata]]\nkey = "score"\n', r"metadata\[0\] \(score\): write min, max or both, or values"),
        ('[[metadata]]\nkey = "score"\nmin = 3\nvalues = ["a"]\n', r"\(score\): write min, max or both, or values"),
        ('[[metadata]]\nkey = "score"\nmin = 3\nmax = 2\n', r"metadata\[0\].min: 3.0 is more than max, 2.0"),
        ('[[metadata]]\nkey = "score"\nmin = nan\n', r"metadata\[0\].min: nan is"),
        ('[[metadata]]\nkey = "score"\nmin = 3\nshare = 1.0\n', r"metadata\[0\].share: 1.0 must lie between 0 and 1"),
        ('[[metadata]]\nkey = "score"\nvalues = [4]\n', r"metadata\[0\].values\[0\]: must be str, found 4"),
        ("[contamination]\nmin_share = 2.0\n", "contamination.min_share: 2.0 must lie between 0 and 1"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_clean_config(path)
