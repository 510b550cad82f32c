"""`clean --decontaminate`: evaluation sets in any form, told apart in the report; mistakes are named."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cmbert.errors import ConfigError, InputError
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, ContaminationConfig
from data_tools.clean.evaluation_sets import texts_in
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.runner import Share

CONFIG = CleanConfig()


def sentence(number: int, length: int = 30) -> str:
    """Return a sentence that no other number has."""
    return "".join(chr(0x4E00 + int(code)) for code in np.random.default_rng(number).integers(0, 9_000, length))


def document(number: int) -> str:
    return "。".join(sentence(1_000 * number + i, 18) for i in range(1, 12)) + "。"


def write_sets(folder: Path) -> dict[str, list[str]]:
    """Write a file of each kind, one text in it; return the texts of each by the file's name."""
    texts = {name: sentence(10_000_000 + i) for i, name in enumerate(("a", "b", "c", "d", "e", "f", "g", "h"))}
    squad = {"data": [{"paragraphs": [{"context": texts["c"], "qas": [{"question": "谁？", "id": 1}]}]}]}
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"meta": {"texts": ["短", texts["a"]]}}) + "\n\n", encoding="utf-8")
    lines = [{"sentence1": "一", "label": 1}, {"sentence1": "二", "sentence2": texts["b"]}]
    (folder / "b.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")  # as CLUE has it
    (folder / "c.json").write_text(json.dumps(squad, ensure_ascii=False, indent=1), encoding="utf-8")
    with open(folder / "d.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["id", "文"], ["1", f'他说："{texts["d"]}"\n然后走了']])
    (folder / "e.tsv").write_text(f'qid\ttext\n1\t"没有完的引号 {texts["e"]}\n', encoding="utf-8")
    (folder / "f.txt").write_text(f"{texts['f']}\n", encoding="utf-8")
    table = pyarrow.table({"score": [0.5], "passages": [[{"text": texts["g"]}]]})
    pyarrow.parquet.write_table(table, folder / "g.parquet")
    with gzip.open(folder / "h.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(["", texts["h"]]))
    return {name: [text] for name, text in texts.items()}


def test_every_text_of_every_kind_of_file(tmp_path: Path) -> None:
    for name, (text,) in write_sets(tmp_path / "sets").items():
        (path,) = (tmp_path / "sets").glob(f"{name}.*")
        assert any(text in found for found in texts_in(path)), path.name


@pytest.fixture
def corpus(write_lines: Callable, tmp_path: Path) -> Path:
    """Texts of their own, and one with each evaluation text in it."""
    planted = [text for texts in write_sets(tmp_path / "sets").values() for text in texts]
    texts = [document(number) for number in range(20)]
    texts += [document(100 + i) + text + document(200 + i) for i, text in enumerate(planted)]
    return write_lines("corpus.jsonl", [{"text": text} for text in texts])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_what_holds_an_evaluation_text_goes(corpus: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    (sets / "tasks").mkdir()
    for name in "abc":
        (file,) = sets.glob(f"{name}.*")
        file.rename(sets / "tasks" / file.name)
    named = [str(sets / "tasks"), *map(str, sorted(sets.glob("[d-h].*")))]
    clean([str(corpus)], tmp_path / "clean", config=CONFIG, decontaminate=named)
    report = report_of(tmp_path / "clean")
    assert report["dropped"] == {"corpus": {"contaminated": 8}}
    expected = {"tasks": (3, 3), **dict.fromkeys("defgh", (1, 1))}
    assert {name: tuple(found.values()) for name, found in report["evaluation_sets"].items()} == expected
    for sample in report["samples"]["corpus"]["contaminated"]:
        assert sample["sets"] == ["tasks"]
        assert sample["share"] == 1
        assert len(sample["run"]) == 30
    page = (tmp_path / "clean/report.html").read_text(encoding="utf-8")
    assert "Evaluation sets that were looked for" in page
    assert report["samples"]["corpus"]["contaminated"][0]["run"] in page
    kept = DocumentReader(whole_files(input_files([str(tmp_path / "clean")])))
    assert [found.text for found in kept] == [document(number) for number in range(20)]


def test_jobs_of_an_array_do_what_one_call_does(corpus: Path, tmp_path: Path) -> None:
    named = {"config": CONFIG, "decontaminate": [str(tmp_path / "sets")]}
    clean([str(corpus)], tmp_path / "one", **named)
    for _ in range(7):
        for number in range(2):
            clean([str(corpus)], tmp_path / "array", **named, share=Share(number, 2))
    clean([str(corpus)], tmp_path / "array", **named)
    assert report_of(tmp_path / "array") == report_of(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"other settings \(decontaminate\)"):
        clean([str(corpus)], tmp_path / "one", config=CONFIG, decontaminate=[str(tmp_path / "sets/a.jsonl")])
    some = CleanConfig(contamination=ContaminationConfig(min_share=0.0))
    with pytest.raises(ConfigError, match=r"other settings \(config\)"):
        clean([str(corpus)], tmp_path / "one", config=some, decontaminate=named["decontaminate"])


def test_sets_of_one_name_go_by_their_paths(corpus: Path, tmp_path: Path) -> None:
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dev.txt").write_text(sentence(ord(place)), encoding="utf-8")
    named = [str(tmp_path / place / "dev.txt") for place in ("x", "y")]
    clean([str(corpus)], tmp_path / "clean", config=CONFIG, decontaminate=named)
    assert list(report_of(tmp_path / "clean")["evaluation_sets"]) == named


def test_mistakes(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    for name, content, message in (
        ("few.txt", "少于十三个字".encode(), r"few.txt: no text of 13 Hanzi or words or more"),
        ("lines.jsonl", b'{"a": 1}\n{"a": ', r"lines.jsonl:2: not JSON"),
        ("both.json", b'{"a": 1}\n{"a": ', r"both.json: neither one JSON value nor JSON lines"),
        ("gbk.txt", "\n".join(["a", sentence(1)]).encode("gb18030"), r"gbk.txt:2: not valid UTF-8 .*iconv -f GB18030"),
        ("open.csv", b'a,b\n1,"2\n', r"open.csv:2: not a row of csv"),
        ("text.gz", b"", r"text.gz: not a"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": "b"}' * 99)[:-9], r"cut.jsonl.gz: damaged or truncated"),
        ("rows.parquet", b"PAR1 no parquet at all", r"rows.parquet: "),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            clean([str(corpus)], tmp_path / "clean", config=CONFIG, decontaminate=[str(folder / name)])
        assert not (tmp_path / "clean").exists()
    with pytest.raises(InputError, match=r"nowhere: no .* file there"):
        clean([str(corpus)], tmp_path / "clean", config=CONFIG, decontaminate=[str(folder / "nowhere")])
