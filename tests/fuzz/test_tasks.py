"""Files of fine-tuning tasks as people may have them: each reader's valid file, damaged, or with odd values in it."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmbert.transfer.tasks.examples import Split, read_split, read_task
from cmbert.transfer.tasks.tags import apart
from cmbert.transfer.tasks.task import CLUE_TASKS, Task, load_task
from tests.fuzz.doors import (
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
    json_bytes,
)

TASKS = {task.name: replace(task, train=("train.json",), dev=("dev.json",), test=("test.json",)) for task in CLUE_TASKS}
TSV = Task(name="mine", text=("text",), labels=("0", "1"), dropped_labels=("-",), test=("test.tsv",), dev=("dev.tsv",))
TABLE = "label\ttext\tid\n1\t今天 \U0001f600\t7\r\n0\t不好\t8\n-\t很好\t9\n".encode()
SPANS = [
    {"span1_text": "手机", "span1_index": 0, "span2_text": "它", "span2_index": 4},
    {"span1_text": "手", "span1_index": 0, "span2_text": "手机响", "span2_index": 0},
]
RECORDS: dict[str, list[Any]] = {
    "tnews": [{"sentence": "今天\ud83d\ude00", "label": "100", "id": 0}, {"sentence": "好", "label": 116, "idx": "x"}],
    "ocnli": [
        {"sentence1": "甲", "sentence2": "乙", "label": "-"},
        {"sentence1": "甲", "sentence2": "乙", "label": "neutral"},
    ],
    "csl": [{"id": 1, "abst": "摘要", "keyword": ["水声学", "声呐"], "label": "1"}],
    "cluewsc2020": [{"target": span, "idx": 3, "label": "true", "text": "手机响了它坏了"} for span in SPANS],
    "chid": [{"content": ["甲#idiom000001#乙#idiom000002#。", "丙"], "candidates": ["一日千里", "方兴未艾"]}],
    "c3": [[["女：来了。", "男：好。"], [{"question": "谁", "choice": ["甲", "乙"], "answer": "乙", "id": 1}], "1-1"]],
}
ANSWERS = {"#idiom000001#": 1, "#idiom000002#": 0}
ASKED = {
    "id": "Q0",
    "question": "哪年？",
    "answers": [{"text": "1862年", "answer_start": 2}, {"text": "年", "answer_start": 9}],
}
CMRC = {
    "nested": {"data": [{"paragraphs": [{"context": "它在1862 年建成", "qas": [ASKED]}]}]},
    "flat": [
        {"context_text": "它在1862年", "qas": [{"query_id": "Q", "query_text": "哪年", "answers": ["1862年", ""]}]}
    ],
}


def read_all(task: Task, folder: Path) -> None:
    """Read a file as train (or dev) and as test; what comes out must be able to be asked and written."""
    for name in ("dev", "test"):
        split = accepts_or_says(lambda name=name: read_split(task, folder, name), str(folder))
        if split is not None:
            check(task, split)


def check(task: Task, split: Split) -> None:
    assert split.examples
    assert split.name == "test" or split.labelled
    for example in split.examples:
        texts = [text for part in example.parts for text in part if text is not None]
        assert "".join([example.id, *texts, *example.answers]).encode("utf-8")
        assert all(text.strip() for text in texts) or task.reader in ("c3", "chid")
        assert example.label is None or 0 <= example.label < max(len(task.labels), len(example.parts))
        if example.answer_start >= 0:
            found = texts[1][example.answer_start : example.answer_end]
            assert "".join(found.split()) in ["".join(answer.split()) for answer in example.answers]
        for start, end, label in example.entities or ():
            assert 0 <= start < end <= len(texts[0])
            assert label in task.labels
        assert len(apart(example.entities or (), len(texts[0]))) <= len(example.entities or ())
        assert all(0 <= place < len(task.labels) for place in example.labels or ())
        assert example.value is None or math.isfinite(example.value)
        if example.kept is not None:
            assert texts[-1][slice(*example.kept)] != ""


def json_lines(records: list[Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy of JSON lines: with odd values, or damaged as bytes."""
    lines = st.builds(
        lambda values, raw: b"\n".join(json_bytes(value, raw) for value in values),
        damaged_lists(records),
        st.booleans(),
    )
    whole = b"\n".join(json_bytes(record, escaped=True) for record in records)
    return st.one_of(lines, lines, damaged_bytes(whole))


def damaged_lists(records: list[Any]) -> st.SearchStrategy[list[Any]]:
    """Return a strategy of lists of records one or more of which are damaged."""
    return damaged_values(records).map(lambda value: value if isinstance(value, list) else [value])


@pytest.mark.parametrize("name", ["tnews", "ocnli", "csl", "cluewsc2020", "chid"])
@given(data=st.data())
@inputs_at_this_door(share=0.2)
def test_json_lines(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        written = data.draw(json_lines(RECORDS[name]))
        for split in ("dev", "test"):
            (path / f"{split}.json").write_bytes(written)
            (path / f"{split}_answer.json").write_text(json.dumps(ANSWERS), encoding="utf-8")
        read_all(TASKS[name], path)


@given(written=damaged_json(ANSWERS))
@inputs_at_this_door()
def test_answers_of_chid(written: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split in ("dev", "test"):
            (Path(folder) / f"{split}.json").write_bytes(json_bytes(RECORDS["chid"][0]))
            (Path(folder) / f"{split}_answer.json").write_bytes(written)
        read_all(TASKS["chid"], Path(folder))


@given(written=damaged_json(RECORDS["c3"]))
@inputs_at_this_door()
def test_c3(written: bytes) -> None:
    whole_file(TASKS["c3"], written)


@pytest.mark.parametrize("spelling", CMRC)
@given(data=st.data())
@inputs_at_this_door(share=0.5)
def test_cmrc(spelling: str, data: st.DataObject) -> None:
    whole_file(TASKS["cmrc2018"], data.draw(damaged_json(CMRC[spelling])))


def whole_file(task: Task, written: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split in ("dev", "test"):
            (Path(folder) / f"{split}.json").write_bytes(written)
        read_all(task, Path(folder))


@given(written=damaged_bytes(TABLE))
@inputs_at_this_door()
def test_tables(written: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split in ("dev", "test"):
            (Path(folder) / f"{split}.tsv").write_bytes(written)
        read_all(TSV, Path(folder))


CSV = '\ufeff文,类\r\n"他说""好""\n又说",快|好\r\n不好,慢\n一般,\n"好,真",快\n'.encode()
NUMBERS = "文,分\n好,4.5\n差,-1e0\n一般,3\n".encode()
OWN = Task(name="own", text=("文",), label="类", train=("train.csv",), dev=("dev.csv",), test=("test.csv",))
TABLES = {
    "labels": (OWN, CSV.replace(b"\xe4\xb8\x80\xe8\x88\xac,\n", b"")),
    "several": (replace(OWN, problem_type="multi_label_classification"), CSV),
    "numbers": (replace(OWN, problem_type="regression", label="分"), NUMBERS),
}
TAGGED = "-DOCSTART- O\n\n王\tB-人名\n明\tE-人名\n在\tO\n\nNew S-地名\r\nYork I-地名\n\u3000 O\n".encode()
CONLL = Task(name="own", reader="conll", train=("train.txt",), dev=("dev.txt",), test=("test.txt",))
ENTITIES = [
    {"text": "他在北京\ud83d\ude00", "label": {"地名": {"北京": [[2, 3]]}, "表情": {"\ud83d\ude00": [[4, 4]]}}},
    {"text": "王明去北京", "label": [[0, 2, "人名"], {"start": 3, "end": 5, "label": "地名", "text": "北京"}], "id": 1},
    {"text": "北京大学", "entities": [{"id": 1, "start_offset": 0, "end_offset": 2, "label": "地名"}, [0, 4, "机构"]]},
]


def whole_task(task: Task, written: bytes, *, whole: bytes = b"") -> None:
    """Read a task all of whose files are the same, or whose training file is `whole`."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "dev", "test"):
            text = whole if split == "train" and whole else written
            (Path(folder) / getattr(task, split)[0]).write_bytes(text)
        found = accepts_or_says(lambda: read_task(task, Path(folder)), folder)
        if found is not None:
            for split in found[1].values():
                check(found[0], split)


@pytest.mark.parametrize("kind", TABLES)
@given(data=st.data())
@inputs_at_this_door(share=0.4)
def test_csv(kind: str, data: st.DataObject) -> None:
    task, valid = TABLES[kind]
    written = data.draw(damaged_bytes(valid))
    whole_task(task, written)
    whole_task(task, written, whole=valid)


@given(written=damaged_bytes(TAGGED))
@inputs_at_this_door()
def test_conll(written: bytes) -> None:
    whole_task(CONLL, written)
    whole_task(CONLL, written, whole=TAGGED)


@given(data=st.data())
@inputs_at_this_door()
def test_entities(data: st.DataObject) -> None:
    task = Task(name="own", reader="entities")
    whole_task(task, data.draw(json_lines(ENTITIES)))


FILE = b"""name = "mine"
text = ["sentence1", "sentence2"]
labels = ["0", "1"]
dropped_labels = ["-"]
train = ["a.tsv"]
max_length = 128
learning_rate = 3e-5
metric = "macro_f1"
"""
OTHERS = (
    b'name = "mine"\nreader = "entities"\nlabels = ["a"]\ntext = ["content"]\n',
    b'name = "mine"\nproblem_type = "multi_label_classification"\nlabel_separator = ","\ndev = []\n',
    b'name = "mine"\nreader = "conll"\n',
)
LIKE = b'like = "ocnli"\nname = "mine"\nepochs = 3\nbatch_size = 16\npredictions = "mine.json"\n'


@given(written=damaged_bytes(FILE, LIKE, *OTHERS))
@inputs_at_this_door()
def test_task_files(written: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(written)
        task = accepts_or_says(lambda: load_task(path), str(path))
        if task is not None:
            assert (Path(folder) / task.name).parent == Path(folder)
            assert (Path(folder) / task.predictions_file).parent == Path(folder)
            accepts_or_says(lambda: read_split(task, Path(folder), "train"), folder)
