"""Labels, lists of labels and numbers from CSV, TSV and JSON lines; what is wrong is named with its line."""

import json
from dataclasses import replace

import pytest

from cmbert.errors import ConfigError, InputError
from cmbert.transfer.tasks.examples import read_split, read_task
from cmbert.transfer.tasks.task import Task, load_task

ONE = Task(name="reviews", text=("评论",), label="类别", train=("train.csv",), dev=("dev.csv",), test=("test.csv",))
SEVERAL = replace(ONE, problem_type="multi_label_classification")
NUMBER = replace(ONE, problem_type="regression", label="分数")
GOOD = "评论,类别\n很好,好评\n太差,差评\n"


def write(folder, **files: str):
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return folder


def test_csv_as_spreadsheets_save_it(tmp_path):
    text = '\ufeff评论,类别\r\n"很好,真的",好评\r\n"说""好""\r\n又说",差评\r\n,\r\n 一般 , 好评 \r\n'
    write(tmp_path, train=text, dev=text)
    task, splits = read_task(ONE, tmp_path)
    assert task.labels == ("好评", "差评")
    assert [example.parts[0][0] for example in splits["train"].examples] == ["很好,真的", '说"好"\n又说', " 一般 "]
    assert [task.labels[example.label] for example in splits["train"].examples] == ["好评", "差评", "好评"]


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("b", "10", "a"), ("10", "a", "b")),
        (("2.5", "1", "10"), ("1", "2.5", "10")),
    ],
)
def test_labels_of_the_training_set(tmp_path, labels, ordered, caplog):
    rows = "".join(f"文{label},{label}\n" for label in labels)
    write(tmp_path, train=f"评论,类别\n{rows}", dev=f"评论,类别\n{rows}")
    with caplog.at_level("INFO"):
        task, splits = read_task(ONE, tmp_path)
    assert task.labels == task.outputs == ordered
    assert f"reviews: 3 labels, those of train.csv: {', '.join(ordered)}" in caplog.text
    assert [task.labels[example.label] for example in splits["dev"].examples] == list(labels)
    assert read_task(replace(ONE, labels=ordered), tmp_path)[1] == splits


def test_labels_that_are_dropped_are_not_learned(tmp_path):
    write(tmp_path, train=GOOD + "难说,-\n", dev=GOOD)
    task, splits = read_task(replace(ONE, dropped_labels=("-",)), tmp_path)
    assert "-" not in task.labels
    assert splits["train"].left_out == 1


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (GOOD, GOOD + "还行,中评\n", r"dev\.csv:4: 类别 '中评' is not one of train\.csv's: 好评, 差评; add an example"),
        (GOOD + "还行,\n", GOOD, r"train\.csv:4: has no label under '类别'; the train split needs all of them"),
        (GOOD + " ,好评\n", GOOD, r"train\.csv:4: 评论 is empty"),
        (GOOD + "好,好评,多\n", GOOD, r"train\.csv:4: has 3 columns, the header 2"),
        (GOOD + "好\n", GOOD, r"train\.csv:4: has 1 columns, the header 2"),
        (
            "评论;类别\n很好;好评\n",
            GOOD,
            r"train\.csv:1: no column '评论'; there is one alone, '评论;类别'; columns of a",
        ),
        ("评论1,类别\n好,好评\n", GOOD, r"train\.csv:1: no column '评论'; did you mean '评论1'\? there are: 评论1, 类"),
        ("评论,评论\n很好,好评\n", GOOD, r"train\.csv:1: the header names a column twice"),
        (GOOD + '"没完,好评\n', GOOD, r"train\.csv:4: not CSV: unexpected end of data; a cell with a quote"),
        (GOOD + '"好"吃,好评\n', GOOD, r"train\.csv:4: not CSV: ',' expected after '\"'"),
        (
            '评论,类别\n很好,"好\n评"\n差,差\u2028评\n',
            GOOD,
            r"dev\.csv:2: 类别 '好评' is not one of train\.csv's: 好\?评, 差\?评",
        ),
        ("评论,类别\n很好,好评\n真好,好评\n", GOOD, r"train\.csv: has one label, '好评' in all .*; reviews needs 2 to"),
        ("评论,类别\n", GOOD, r"train\.csv: has no label in all its examples"),
        ("", GOOD, r"train\.csv: holds no row"),
        (GOOD, "\n\n", r"dev\.csv: holds no row"),
    ],
)
def test_wrong_rows_are_named(tmp_path, train, dev, message):
    write(tmp_path, train=train, dev=dev)
    with pytest.raises(InputError, match=message) as error:
        read_task(ONE, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_of_another_encoding(tmp_path):
    write(tmp_path, dev=GOOD)
    (tmp_path / "train.csv").write_bytes(GOOD.encode("gb18030"))
    with pytest.raises(InputError, match=r"train\.csv:1: not UTF-8.*iconv -f GB18030 -t UTF-8"):
        read_task(ONE, tmp_path)


def test_a_tenth_is_held_back_and_always_the_same(tmp_path, caplog):
    rows = "".join(f"第{index}条,{'好评' if index % 2 else '差评'}\n" for index in range(57))
    write(tmp_path, train=f"评论,类别\n{rows}")
    task = replace(ONE, dev=())
    with caplog.at_level("INFO"):
        _, splits = read_task(task, tmp_path)
    assert "5 of 57 examples of" in caplog.text
    assert "drawn by lot, are held back for dev" in caplog.text
    ids = [[int(example.id) for example in splits[name].examples] for name in ("train", "dev")]
    assert sorted(ids[0] + ids[1]) == list(range(57))
    assert ids[0] == sorted(ids[0])
    assert ids[1] == [12, 16, 30, 42, 53]  # in every call, on every machine
    write(tmp_path, train=GOOD)
    with pytest.raises(InputError, match=r"train\.csv: 2 examples, of which a tenth cannot be held back"):
        read_task(task, tmp_path)


def test_several_labels_or_none(tmp_path):
    write(tmp_path, train="评论,类别\n又快又好,快|好\n慢, 慢 \n一般,\n", dev="评论,类别\n快,快\n")
    task, splits = read_task(SEVERAL, tmp_path)
    assert task.labels == ("好", "快", "慢")
    assert [example.labels for example in splits["train"].examples] == [(0, 1), (2,), ()]
    in_json = replace(task, train=("train.json",))
    lists = (["快", "好", "快"], ["慢"], [])
    lines = [json.dumps({"评论": "又快又好", "类别": labels}, ensure_ascii=False) for labels in lists]
    (tmp_path / "train.json").write_text("\n".join(lines), encoding="utf-8")
    assert [example.labels for example in read_split(in_json, tmp_path, "train").examples] == [(0, 1), (2,), ()]
    by_commas = replace(task, label_separator=",")
    write(tmp_path, train='评论,类别\n又快又好,"快,好"\n')
    assert read_split(by_commas, tmp_path, "train").examples[0].labels == (0, 1)


def test_a_test_split_without_any_label_is_not_scored(tmp_path):
    task = replace(SEVERAL, labels=("快", "好"))
    for text in ("评论,类别\n很快,\n很好,\n", "评论\n很快\n很好\n"):
        write(tmp_path, test=text)
        assert not read_split(task, tmp_path, "test").labelled
    write(tmp_path, test="评论,类别\n很快,快\n一般,\n")
    assert read_split(task, tmp_path, "test").labelled


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["快", "中"], r"类别 '中' is not one of reviews's: 快, 好"),
        (["快", ""], r"a label of 类别 is empty"),
        (["快", ["好"]], r"a label of 类别 must be text or a number, found list"),
        (5, r"类别 must be a list of labels, found int"),
        ({}, r"类别 must be a list of labels, found dict"),
        (None, r"has no label under '类别'; the dev split needs all of them"),
    ],
)
def test_wrong_lists_of_labels(tmp_path, value, message):
    task = replace(SEVERAL, labels=("快", "好"), dev=("dev.json",))
    (tmp_path / "dev.json").write_text(json.dumps({"评论": "好", "类别": value}, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.json:1: " + message):
        read_split(task, tmp_path, "dev")


def test_numbers(tmp_path):
    write(tmp_path, train="评论,分数\n好,4.5\n差,-1\n一般,3e0\n", dev="评论,分数\n好, 5 \n", test="评论,分数\n好,\n")
    task, splits = read_task(NUMBER, tmp_path)
    assert task.labels == ()
    assert task.outputs == ("分数",)
    assert [example.value for example in splits["train"].examples] == [4.5, -1.0, 3.0]
    assert splits["dev"].examples[0].value == 5.0
    assert not splits["test"].labelled


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", r"分数 must be a finite number, found 'nan'"),
        ("inf", r"分数 must be a finite number, found 'inf'"),
        ("-1e999", r"分数 must be a finite number, found '-1e999'"),
        ("三分", r"分数 must be a finite number, found '三分'"),
        ("", r"has no number under '分数'; the dev split needs all of them"),
        (None, r"has no number under '分数'"),
        (True, r"分数 must be a number, found bool"),
        ([1], r"分数 must be a number, found list"),
        (float("nan"), r"分数 must be a finite number, found nan"),
        (10**400, r"分数 must be a finite number"),
    ],
)
def test_wrong_numbers(tmp_path, value, message):
    task = replace(NUMBER, dev=("dev.json",))
    (tmp_path / "dev.json").write_text(json.dumps({"评论": "好", "分数": value}, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.json:1: " + message):
        read_split(task, tmp_path, "dev")


def test_numbers_that_are_all_the_same(tmp_path):
    write(tmp_path, train="评论,分数\n好,3\n差,3.0\n", dev="评论,分数\n好,5\n")
    with pytest.raises(InputError, match=r"train\.csv: 分数 is the same number in every example; nothing to learn"):
        read_task(NUMBER, tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('problem_type = "regresion"', "did you mean 'regression'"),
        ('problem_type = "regression"\nlabels = ["0", "1"]', "labels: must be left out: answers are no labels"),
        ('problem_type = "regression"\nmetric = "accuracy"', "metric: must be left out: only classes have a choice"),
        ('label_separator = ","', "label_separator: must be left out: an example has no list of labels"),
        ('problem_type = "multi_label_classification"\nlabel_separator = ""', "label_separator: must be a sign"),
        ('problem_type = "multi_label_classification"\nlabels = ["a", "a"]', "labels: must list labels, each once"),
        ('reader = "c3"\nproblem_type = "regression"', "problem_type: must be left out: reader is 'c3'"),
        ('text = ["a"]\nlabel = "a"', "label: must be another key than the text's"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, lines, message):
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_task(tmp_path / "mine.toml")
