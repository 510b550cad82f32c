"""Texts with entities from CoNLL's lines and JSON lines; what is wrong is named with its line."""

import json

import pytest

from cmbert.errors import ConfigError, InputError
from cmbert.transfer.tasks.entities import join
from cmbert.transfer.tasks.examples import read_split, read_task
from cmbert.transfer.tasks.fields import Entity
from cmbert.transfer.tasks.task import Task, load_task

FILES = {"train": ("train.txt",), "dev": ("dev.txt",), "test": ("test.txt",)}
CONLL = Task(name="people", reader="conll", **FILES)
PLACES = Task(name="places", reader="entities", labels=("地名", "机构"))
TEXT = "他在北京大学读书"


def conll(folder, text: str, split: str = "train", task: Task = CONLL):
    (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return read_split(task, folder, split, learned=not task.labels)


def entities(folder, record: dict, split: str = "dev"):
    (folder / f"{split}.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_split(PLACES, folder, split).examples[0].entities


def test_conll_as_bio_and_as_bmes(tmp_path):
    bio = "-DOCSTART- O\n\n王\tB-人名\n小\tI-人名\n明\tI-人名\n在\tO\n京\tB-地名\n\n好\tO\r\n"
    bmes = "王 x B-人名\n小 y M-人名\n明 z E-人名\n在 _ O\n京 _ S-地名\n\n\n\n好 O"
    first, second = conll(tmp_path, bio), conll(tmp_path, bmes)
    assert first == second
    example, other = first.examples
    assert example.parts == (("王小明在京", None),)
    assert example.entities == (Entity(0, 3, "人名"), Entity(4, 5, "地名"))
    assert (other.parts[0][0], other.entities, other.id) == ("好", (), "1")


def test_tags_that_begin_with_i_and_change_type(tmp_path):
    (example,) = conll(tmp_path, "王 I-人名\n明 I-人名\n北 I-地名\n京 B-地名\n市 E-地名\n人 O\n").examples
    assert example.entities == (Entity(0, 2, "人名"), Entity(2, 3, "地名"), Entity(3, 5, "地名"))


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (("北", "京"), "北京"),
        (("New", "York", "很", "大"), "New York很大"),
        (("iPhone", "15", "发布"), "iPhone 15发布"),
        (("2", "0", "0", "8", "年"), "2008年"),  # one character a line
        (("用", "C", "++", "写"), "用C++写"),
        (("北", "\u3000", "京"), "北\u3000京"),
    ],
)
def test_units_are_joined(units, text):
    found, places = join(units)
    assert found == text
    assert [found[start:end] for start, end in places] == list(units)


def test_an_entity_of_words_has_the_space_between_them(tmp_path):
    (example,) = conll(tmp_path, "去\tO\nNew\tB-地名\nYork\tI-地名\n玩\tO\n").examples
    assert example.entities == (Entity(1, 9, "地名"),)
    assert example.parts[0][0][1:9] == "New York"


def test_units_of_a_test_split_may_have_no_tags(tmp_path):
    split = conll(tmp_path, "王\n明\n\n好\n", "test")
    assert [example.parts[0][0] for example in split.examples] == ["王明", "好"]
    assert not split.labelled
    with pytest.raises(InputError, match=r"test\.txt:2: has one column"):
        conll(tmp_path, "王 B-人名\n明\n", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("王 B-人名\n明\n", r":2: has one column; a line is a character or word, a tab or space, and its tag"),
        ("王 O\n\tO\n", r":2: has nothing in its first column"),
        ("王 O\n明 B_人名\n", r":2: tag 'B_人名' must be O, or B-, I-, M-, E- or S- and a type"),
        ("王 O\n明 B-\n", r":2: tag 'B-' must be O, or B-"),
        ("王 o\n", r":1: tag 'o' must be O"),
        ("王 O\n明 0\n", r":2: tag '0' must be O"),
        ("王 B-O\n", r":1: a type of entity is named 'O'"),
        ("\n \n", r"train\.txt: holds no example of people"),
    ],
)
def test_wrong_lines_of_conll(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        conll(tmp_path, text)
    assert str(tmp_path / "train.txt") in str(error.value)


def test_types_are_those_of_the_training_set(tmp_path):
    conll(tmp_path, "王 B-人名\n京 S-地名\n")
    conll(tmp_path, "王 B-人名\n", "dev")
    task, splits = read_task(CONLL, tmp_path)
    assert task.outputs == ("O", "B-人名", "I-人名", "B-地名", "I-地名")
    assert splits["test"] is None
    (tmp_path / "dev.txt").write_text("好 O\n校 B-机构\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.txt:2: type '机构' is not one of train\.txt's: 人名, 地名; add an"):
        read_task(CONLL, tmp_path)
    (tmp_path / "train.txt").write_text("好 O\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.txt: has no entity in all its examples"):
        read_task(CONLL, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"label": {"地名": {"北京": [[2, 3]]}, "机构": {"北京大学": [[2, 5], [2, 5]]}}},
        {"label": [[2, 4, "地名"], [2, 6, "机构"]]},
        {"entities": [[2, 6, "机构"], [2, 4, "地名"]]},
        {"entities": [{"start": 2, "end": 6, "label": "机构", "text": "北京大学"}, [2, 4, "地名"]]},
        {"entities": [{"id": 1, "start_offset": 2, "end_offset": 6, "label": "机构"}, [2, 4, "地名"]]},
    ],
)
def test_every_spelling_of_json(tmp_path, given):
    assert entities(tmp_path, {"text": TEXT, **given}) == (Entity(2, 4, "地名"), Entity(2, 6, "机构"))


def test_a_text_may_have_no_entity_or_in_a_test_split_no_answer(tmp_path):
    assert entities(tmp_path, {"text": TEXT, "label": []}) == ()
    assert entities(tmp_path, {"text": TEXT, "label": {}}) == ()
    assert entities(tmp_path, {"id": 3, "text": TEXT}, "test") is None
    with pytest.raises(InputError, match=r"dev\.json:1: has nothing under 'label' or 'entities'; an empty list"):
        entities(tmp_path, {"text": TEXT})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[2, 9, "地名"]], r"entity \[2, 9, '地名'\]: is not inside the text, which has 8 characters"),
        ([[-1, 3, "地名"]], r"entity \[-1, 3, '地名'\]: is not inside the text"),
        ([[3, 3, "地名"]], r"entity \[3, 3, '地名'\]: is not inside the text"),
        ([["2", 4, "地名"]], r"entity \['2', 4, '地名'\]: must be two whole numbers, start and end, and a type"),
        ([[2, True, "地名"]], r"entity \[2, True, '地名'\]: must be two whole numbers"),
        ([[2, 4]], r"label must hold \[start, end, type\], or objects with these three, found \[2, 4\]"),
        (["北京"], r"label must hold \[start, end, type\]"),
        ("北京", r"label must be a list or an object, found str"),
        ([{"start": 2, "end": 4}], r"label must be text, found none"),
        ([{"start": 2, "end": 4, "label": "地名", "text": "上海"}], r"entity \[2, 4, '地名'\]: '北京' stands there"),
        ([[2, 4, "人名"]], r"type '人名' is not one of places's: 地名, 机构"),
        ([[2, 4, "O"]], r"a type of entity is named 'O'"),
        ({"地名": {"上海": [[2, 3]]}}, r"entity \[2, 4, '地名'\]: '北京' stands there, not '上海'"),
        ({"地名": {"北京": [[2, 30]]}}, r"entity \[2, 31, '地名'\]: is not inside the text"),
        ({"地名": {"北京": [2, 3]}}, r"label: '北京' must have lists of \[start, last character\]"),
        ({"地名": {"北京": 2}}, r"label: '北京' must have a list of \[start, last character\]"),
        ({"地名": [[2, 3]]}, r"label\.地名 must be an object, found list"),
    ],
)
def test_entities_that_are_not_in_their_text(tmp_path, given, message):
    with pytest.raises(InputError, match=r"dev\.json:1: " + message) as error:
        entities(tmp_path, {"text": TEXT, "label": given})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('reader = "conll"\ntext = ["a"]', "text: must be left out: the first and the last column are read"),
        ('reader = "entities"\ntext = ["a", "b"]', "text: must name one key, found 2"),
        ('reader = "entities"\nlabels = ["O"]', 'labels: must list types of entities, each once, none "O"'),
        ('reader = "entities"\nmetric = "accuracy"', "metric: must be left out: only classes have a choice"),
        ('reader = "conll"\nproblem_type = "regression"', "problem_type: must be left out: reader is 'conll'"),
        ('reader = "conll"\ndropped_labels = ["-"]', "dropped_labels: must be left out: entities are labelled"),
    ],
)
def test_keys_without_an_effect_are_refused(tmp_path, lines, message):
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_task(tmp_path / "mine.toml")
