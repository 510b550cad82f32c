"""Official formats are read as they are released; what is wrong is named with its line."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmbert.errors import ConfigError, InputError
from cmbert.transfer.tasks.examples import read_split
from cmbert.transfer.tasks.task import CLUE_TASKS, Task, find_data, find_task, load_task

ROOT = Path(__file__).parents[4]
TASKS = {task.name: task for task in CLUE_TASKS}


def lines(path: Path, *records) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def test_pairs_and_dropped_labels(tmp_path):
    pair = {"sentence1": "他在看书", "sentence2": "他没在睡觉"}
    lines(tmp_path / "dev.json", pair | {"label": "entailment", "id": 7}, pair | {"label": "-"})
    (example,) = read_split(TASKS["ocnli"], tmp_path, "dev").examples
    assert example.parts == (("他在看书", "他没在睡觉"),)
    assert (example.id, example.label) == ("7", 0)


def test_codes_are_read_as_numbers_or_text(tmp_path):
    lines(tmp_path / "dev.json", {"label": 100, "sentence": "甲"}, {"label": "116", "sentence": "乙"})
    assert [example.label for example in read_split(TASKS["tnews"], tmp_path, "dev").examples] == [0, 14]


def test_pronouns_are_marked_from_the_end(tmp_path):
    target = {"span1_text": "手机", "span1_index": 0, "span2_text": "它", "span2_index": 4}
    lines(tmp_path / "dev.json", {"target": target, "idx": 3, "label": "true", "text": "手机响了它坏了"})
    (example,) = read_split(TASKS["cluewsc2020"], tmp_path, "dev").examples
    assert example.parts == (("_手机_响了[它]坏了", None),)
    assert (example.id, example.label) == ("3", 1)


def test_keywords(tmp_path):
    lines(tmp_path / "dev.json", {"id": 1, "abst": "摘要", "keyword": ["水声学", "声呐"], "label": "1"})
    assert read_split(TASKS["csl"], tmp_path, "dev").examples[0].parts == (("水声学 声呐", "摘要"),)


def test_c3(tmp_path):
    question = {"question": "谁来了？", "choice": ["甲", "乙", "丙"], "answer": "乙"}
    for name in ("d-dev.json", "m-dev.json"):
        (tmp_path / name).write_text(json.dumps([[["女：来了。", "男：好。"], [question], "1-1"]]), encoding="utf-8")
    examples = read_split(TASKS["c3"], tmp_path, "dev").examples
    assert len(examples) == 2
    assert examples[0].label == 1
    assert examples[0].parts[2] == ("谁来了？ 丙", "女：来了。\n男：好。")


def test_chid(tmp_path):
    passage = "甲" * 100 + "#idiom000001#乙#idiom000002#。"
    lines(tmp_path / "dev.json", {"content": [passage], "candidates": ["一日千里", "方兴未艾"]})
    (tmp_path / "dev_answer.json").write_text('{"#idiom000001#": 1, "#idiom000002#": 0}', encoding="utf-8")
    first, second = read_split(TASKS["chid"], tmp_path, "dev").examples
    assert (first.id, first.label, second.label) == ("#idiom000001#", 1, 0)
    assert first.parts[1] == second.parts[1] == ("方兴未艾", "甲" * 100 + "____乙____。")
    assert (first.kept, second.kept) == ((100, 104), (105, 109))
    lines(tmp_path / "test1.1.json", {"content": [passage], "candidates": ["一日千里", "方兴未艾"]})
    assert not read_split(TASKS["chid"], tmp_path, "test").labelled


@pytest.mark.parametrize("nested", [True, False])
def test_cmrc_in_both_shapes(tmp_path, nested):
    if nested:
        answers = [{"text": "1862年", "answer_start": 0}, {"text": "1862年", "answer_start": 3}]
        asked = {"id": "Q0", "question": "哪年？", "answers": answers}
        article = {"paragraphs": [{"context": "它在1862年建成", "qas": [asked]}]}
    else:
        asked = {"query_id": "Q0", "query_text": "哪年？", "answers": ["1862年", "1862年"]}
        article = {"context_text": "它在1862年建成", "qas": [asked]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [article]}), encoding="utf-8")
    (example,) = read_split(TASKS["cmrc2018"], tmp_path, "dev").examples
    assert example.id == "Q0"
    assert example.answer_start == 2  # a wrong start is found anew
    assert example.answers == ("1862年", "1862年")


def test_tsv_and_byte_order_mark(tmp_path):
    task = Task(name="mine", text=("text_a",), labels=("0", "1"), dev=("dev.tsv",))
    (tmp_path / "dev.tsv").write_text('\ufefflabel\ttext_a\n1\t说"好"\n0\t不好\n', encoding="utf-8")
    assert [e.parts[0][0] for e in read_split(task, tmp_path, "dev").examples] == ['说"好"', "不好"]
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n1\t好\t多\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.tsv:2: has 3 columns, the header 2"):
        read_split(task, tmp_path, "dev")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentence1": "甲", "sentence2": "乙", "label": "2"}, r"dev\.json:2: label '2' is not one of afqmc's: 0, 1"),
        ({"sentence1": " ", "sentence2": "乙", "label": "1"}, r"dev\.json:2: sentence1 is empty"),
        ({"sentence": "甲", "label": "1"}, r"dev\.json:2: sentence1 must be text, found none; fields: sentence, label"),
        ({"sentence1": 5, "sentence2": "乙", "label": "1"}, r"dev\.json:2: sentence1 must be text, found int"),
        ([1], r"dev\.json:2: not a JSON object but list"),
        ({"sentence1": "甲", "sentence2": "乙"}, r"dev\.json:2: has no label under 'label'; the dev split needs all"),
    ],
)
def test_wrong_lines_are_named(tmp_path, record, message):
    lines(tmp_path / "dev.json", {"sentence1": "甲", "sentence2": "乙", "label": "1"}, record)
    with pytest.raises(InputError, match=message):
        read_split(TASKS["afqmc"], tmp_path, "dev")


def test_missing_empty_and_broken_files(tmp_path):
    with pytest.raises(InputError, match=r"dev\.json: no such file: afqmc needs its dev split"):
        read_split(TASKS["afqmc"], tmp_path, "dev")
    assert read_split(TASKS["afqmc"], tmp_path, "test") is None
    (tmp_path / "dev.json").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.json: only blank lines"):
        read_split(TASKS["afqmc"], tmp_path, "dev")
    (tmp_path / "dev.json").write_text('{"sentence1"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.json:1: not a JSON object"):
        read_split(TASKS["afqmc"], tmp_path, "dev")
    (tmp_path / "dev.json").write_bytes("甲".encode("gbk"))
    with pytest.raises(InputError, match=r"dev\.json:1: not UTF-8"):
        read_split(TASKS["afqmc"], tmp_path, "dev")


def test_a_task_may_list_no_test_file(tmp_path):
    assert read_split(replace(TASKS["ocnli"], test=()), tmp_path, "test") is None


def test_tasks_are_found_by_name_and_file(tmp_path):
    assert find_task("tnews").labels[0] == "100"
    with pytest.raises(ConfigError, match="did you mean 'ocnli'"):
        find_task("oclni")
    path = tmp_path / "mine.toml"
    path.write_text('like = "ocnli"\nname = "mine"\ntrain = ["part.json"]\n', encoding="utf-8")
    assert load_task(path) == replace(TASKS["ocnli"], name="mine", train=("part.json",))
    path.write_text('name = "mine"\nlables = ["0", "1"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml: lables: unknown key; did you mean 'labels'"):
        load_task(path)
    path.write_text('name = "mine"\n', encoding="utf-8")
    assert load_task(path).needs_labels  # those of its training set
    path.write_text('name = "mine"\nlabels = ["0"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"labels: must list two labels or more"):
        load_task(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('name = ""', "name: must be a folder's name"),
        ('name = "../x"', "name: must be a folder's name"),
        ("max_length = 0", "max_length: must be 16 tokens or more"),
        ("max_length = -5", "max_length: must be 16 tokens or more"),
        ("epochs = 0", "epochs: must be 1 or more"),
        ("batch_size = 0", "batch_size: must be 1 or more"),
        ("learning_rate = -1.0", "learning_rate: must be positive"),
        ("learning_rate = nan", "learning_rate: nan is not a number"),
        ("text = []", "text: must name one key or two, found 0"),
        ('text = ["a", "a"]', "text: must name one key or two, found 2"),
        ('labels = ["0", "0"]', "labels: must list two labels or more, each once"),
        ('dropped_labels = ["0"]', "labels: must list two labels or more, each once, none dropped"),
        ("train = []", "train: must list one file or more"),
        ('dev = [""]', "dev: must list one file or more"),
        ('predictions = "a/b"', "predictions: must be a file's name"),
        ("like = 3", "like: must be a task's name or file in quotes"),
        ('like = "oclni"', "like ?oclni: unknown task; did you mean 'ocnli'"),
        ('like = "mine.toml"', "like: task files are like each other in a circle"),
    ],
)
def test_values_at_the_edge_of_a_task_file(tmp_path, line, said):
    path = tmp_path / "mine.toml"
    table = {"name": '"mine"', "labels": '["0", "1"]'} | {line.partition(" = ")[0]: line.partition(" = ")[2]}
    path.write_text("".join(f"{key} = {value}\n" for key, value in table.items()), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_task(path)


def test_a_task_file_like_another_beside_it(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nlabels = ["0", "1"]\n', encoding="utf-8")
    (tmp_path / "b.toml").write_text('like = "a.toml"\nname = "b"\nepochs = 2\n', encoding="utf-8")
    assert load_task(tmp_path / "b.toml") == Task(name="b", labels=("0", "1"), epochs=2)


def test_the_shipped_task_files_load():
    paths = sorted((ROOT / "recipes" / "tasks").glob("*.toml"))
    assert {load_task(path).name for path in paths} == {path.stem for path in paths}


def test_data_folders_as_clue_packs_them(tmp_path):
    (tmp_path / "afqmc_public").mkdir()
    lines(tmp_path / "afqmc_public" / "train.json", {})
    assert find_data(tmp_path, TASKS["afqmc"], 2) == tmp_path / "afqmc_public"
    with pytest.raises(ConfigError, match=r"no train\.json of tnews in"):
        find_data(tmp_path, TASKS["tnews"], 1)


def test_readers_need_no_torch():
    assert importlib.util.find_spec("cmbert.transfer.tasks.examples")
