"""Files as people have them: cut emoji, odd ends of lines, other encodings, answers kept back."""

import json
from pathlib import Path

import pytest

from cmbert.errors import InputError
from cmbert.transfer.tasks.examples import read_split
from cmbert.transfer.tasks.task import CLUE_TASKS, Task, find_task

TASKS = {task.name: task for task in CLUE_TASKS}
HALF = "好笑\ud83d"
WSC = {"span1_text": "手机", "span1_index": 0, "span2_text": "它", "span2_index": 4}
C3 = {"question": "谁来了？", "choice": ["甲", "乙"], "answer": "乙"}
CHID = {"content": ["真是#idiom1#啊"], "candidates": ["一日千里", "方兴未艾"]}
GOOD = {  # task -> (file, what it holds)
    "tnews": {"sentence": "今天下雨", "label": "100", "id": 0},
    "afqmc": {"sentence1": "甲", "sentence2": "乙", "label": "1"},
    "csl": {"abst": "摘要", "keyword": ["声呐"], "label": "1", "id": 1},
    "cluewsc2020": {"target": WSC, "idx": 3, "label": "true", "text": "手机响了它坏了"},
    "chid": CHID,
}


def write(folder: Path, task: Task, record: object, split: str = "dev") -> Path:
    """Write one record, escaped as JSON may be, as a split of a task; ChID's answers beside it."""
    for name in getattr(task, split):
        whole = [record] if task.reader == "c3" else {"data": [record]} if task.reader == "cmrc" else record
        lines = json.dumps(whole, indent=1 if task.reader in ("c3", "cmrc") else None)
        (folder / name).write_text(lines, encoding="utf-8")
        if task.reader == "chid":
            (folder / f"{name.removesuffix('.json')}_answer.json").write_text('{"#idiom1#": 1}', encoding="utf-8")
    return folder / getattr(task, split)[0]


def c3(context=("女：来了。",), **changes):
    return [list(context), [C3 | changes], "1-1"]


def cmrc(context="它在1862年建成", **changes):
    asked = {"id": "Q0", "question": "哪年？", "answers": [{"text": "1862年", "answer_start": 2}]}
    return {"paragraphs": [{"context": context, "qas": [asked | changes]}]}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("tnews", GOOD["tnews"] | {"sentence": HALF}),
        ("tnews", GOOD["tnews"] | {"label": HALF}),
        ("tnews", GOOD["tnews"] | {"id": HALF}),
        ("tnews", GOOD["tnews"] | {HALF: 1}),
        ("afqmc", GOOD["afqmc"] | {"sentence2": HALF}),
        ("csl", GOOD["csl"] | {"keyword": ["声呐", HALF]}),
        ("cluewsc2020", GOOD["cluewsc2020"] | {"target": WSC | {"span1_text": HALF}}),
        ("c3", c3(context=[HALF])),
        ("c3", c3(question=HALF)),
        ("c3", c3(choice=["乙", HALF])),
        ("chid", CHID | {"content": [HALF + "#idiom1#"]}),
        ("chid", CHID | {"candidates": ["一日千里", HALF]}),
        ("cmrc2018", cmrc(context=HALF)),
        ("cmrc2018", cmrc(answers=[HALF])),
    ],
)
def test_half_of_a_surrogate_pair(tmp_path, name, record):
    path = write(tmp_path, TASKS[name], record)
    lines = path.read_text(encoding="utf-8").split("\n")
    number = next(number for number, line in enumerate(lines, start=1) if "\\ud83d" in line)
    with pytest.raises(InputError, match=f":{number}: holds half of a surrogate pair") as error:
        read_split(TASKS[name], tmp_path, "dev")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path, odd):
    sentence = f"今天{odd}下雨"
    line = json.dumps(GOOD["tnews"], ensure_ascii=False).replace("今天下雨", sentence)  # a raw one, not an escape
    (tmp_path / "dev.json").write_text(f"{line}\n{line}\r\n", encoding="utf-8", newline="")
    examples = read_split(TASKS["tnews"], tmp_path, "dev").examples
    assert [example.parts[0][0] for example in examples] == [sentence] * 2
    task = Task(name="mine", text=("text",), labels=("0", "1"), dev=("dev.tsv",))
    rows = f"label\ttext\r\n1\t{sentence}\r\n0\t不好\r\n"
    (tmp_path / "dev.tsv").write_text(rows, encoding="utf-8", newline="")
    examples = read_split(task, tmp_path, "dev").examples
    assert [(example.label, example.parts[0][0]) for example in examples] == [(1, sentence), (0, "不好")]


@pytest.mark.parametrize("name", ["tnews", "c3", "cmrc2018", "chid"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b" \n\r\n", "empty|blank"),
        ('{"sentence": "好"}'.encode("gb18030"), "iconv -f GB18030 -t UTF-8"),
        ('{"sentence": "好"}'.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        (b'{"sentence": "\0"}', "NUL|control character"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xef\xbb\xbf", "empty|JSON|blank"),
        (b'"text"', "must|not a JSON object"),
        (b'{"sentence": "a"}\r{"sentence": "b"}', "Extra data"),
    ],
    ids=["empty", "blank", "gb18030", "utf-16", "nul", "deep", "mark", "text", "lone cr"],
)
def test_files_of_something_else(tmp_path, name, data, said):
    for file in TASKS[name].dev:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=said) as error:
        read_split(TASKS[name], tmp_path, "dev")
    assert str(tmp_path / TASKS[name].dev[0]) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("tnews", GOOD["tnews"] | {"label": True}, r":1: label 'true' is not one of tnews's"),
        ("tnews", GOOD["tnews"] | {"label": 100.0}, r":1: label '100\.0' is not one of tnews's"),
        ("tnews", GOOD["tnews"] | {"label": float("nan")}, r":1: label 'nan' is not one of"),
        ("tnews", GOOD["tnews"] | {"label": ["100"]}, r":1: label must be text or a number, found list"),
        ("tnews", GOOD["tnews"] | {"label": 10**4000}, r":1: label '1000.*\.\.\. is not one of"),
        ("tnews", GOOD["tnews"] | {"label": "x\u2028y"}, r":1: label 'x\\u2028y' is not one of"),
        ("tnews", GOOD["tnews"] | {"id": []}, r":1: id must be text or a whole number, found list"),
        ("tnews", GOOD["tnews"] | {"sentence": "a\0b"}, r":1: sentence holds a NUL"),
        ("csl", GOOD["csl"] | {"keyword": ["声呐", 1]}, r":1: keyword must be a list of text"),
        ("csl", GOOD["csl"] | {"keyword": [" "]}, r":1: keyword is empty"),
        ("cluewsc2020", GOOD["cluewsc2020"] | {"target": WSC | {"span2_index": -3}}, r":1: target\.span2_index -3"),
        ("cluewsc2020", GOOD["cluewsc2020"] | {"target": WSC | {"span2_text": ""}}, r":1: span2_text is empty"),
        ("c3", {}, "entry 0: must be"),
        ("c3", [["女"], ["谁"], "1"], "entry 0: a question must be an object, found str"),
        ("c3", c3(choice=[]), "entry 0: choice is empty"),
        ("c3", c3(choice=["甲", 2]), "entry 0: choice must be a list of text"),
        ("c3", c3(context=[1]), "entry 0: context must be a list of text"),
        ("c3", c3(answer="丁"), "entry 0: answer '丁' is not among the choices"),
        ("chid", CHID | {"content": [1]}, r":1: content must be a list of text"),
        ("chid", CHID | {"candidates": []}, r":1: candidates is empty"),
        ("cmrc2018", 5, "article 0: it must be an object, found int"),
        ("cmrc2018", {"paragraphs": [5]}, "article 0: a paragraph must be an object, found int"),
        ("cmrc2018", cmrc(answers=5), "question Q0: answers must be a list"),
        ("cmrc2018", cmrc(answers=[5]), "question Q0: an answer must be text"),
        ("cmrc2018", cmrc(answers=[{"text": "年", "answer_start": "2"}]), "answer_start must be a whole number"),
    ],
)
def test_fields_of_another_kind(tmp_path, name, record, said):
    path = write(tmp_path, TASKS[name], record)
    with pytest.raises(InputError, match=said) as error:
        read_split(TASKS[name], tmp_path, "dev")
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400 + len(str(path))


FAKE = {"text": "", "answer_start": -1}


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("cmrc2018", [cmrc(answers=given) for given in ([FAKE], [FAKE, FAKE], [], None, [""], [None])]),
        ("c3", [c3(answer=given) for given in ("", None, -1)]),
        ("tnews", [GOOD["tnews"] | {"label": given} for given in ("", None, -1, "-1")]),
        ("cluewsc2020", [GOOD["cluewsc2020"] | {"label": given} for given in ("", None)]),
    ],
)
def test_answers_that_are_kept_back(tmp_path, name, records):
    task = TASKS[name]
    for record in records:
        write(tmp_path, task, record, "test")
        split = read_split(task, tmp_path, "test")
        assert not split.labelled
        assert split.examples[0].label is None
        assert split.examples[0].answers == ()
        path = write(tmp_path, task, record, "train")
        with pytest.raises(InputError, match="the train split needs all of them") as error:
            read_split(task, tmp_path, "train")
        assert str(path) in str(error.value)


def test_missing_keys_of_answers(tmp_path):
    bare = {"id": "Q0", "question": "哪年？"}
    write(tmp_path, TASKS["cmrc2018"], {"paragraphs": [{"context": "甲", "qas": [bare]}]}, "test")
    assert not read_split(TASKS["cmrc2018"], tmp_path, "test").labelled
    write(tmp_path, TASKS["c3"], [["女"], [{"question": "谁", "choice": ["甲", "乙"]}], "1"], "test")
    assert not read_split(TASKS["c3"], tmp_path, "test").labelled
    write(tmp_path, TASKS["chid"], CHID, "train")
    (tmp_path / "train_answer.json").unlink()
    with pytest.raises(InputError, match=r"the train split needs all of them.*train_answer\.json"):
        read_split(TASKS["chid"], tmp_path, "train")


def test_questions_without_an_answer_among_others(tmp_path):
    """SQuAD 2's impossible questions: a model here always answers, so training on them would teach a wrong place."""
    write(tmp_path, TASKS["cmrc2018"], cmrc(answers=[], is_impossible=True), "train")
    with pytest.raises(InputError, match=r"question Q0: has no answer.*remove questions that have none"):
        read_split(TASKS["cmrc2018"], tmp_path, "train")


def test_two_questions_of_one_name_lose_an_answer(tmp_path):
    article = cmrc()
    article["paragraphs"][0]["qas"] *= 2
    write(tmp_path, TASKS["cmrc2018"], article, "test")
    with pytest.raises(InputError, match=r"test\.json: 'Q0' stands twice; a submission holds an id once"):
        read_split(TASKS["cmrc2018"], tmp_path, "test")
    write(tmp_path, TASKS["cmrc2018"], article, "dev")
    assert len(read_split(TASKS["cmrc2018"], tmp_path, "dev").examples) == 2


def test_odd_identities(tmp_path):
    lines = [json.dumps({"sentence": "好"} | record) for record in ({"id": None}, {"id": "007"}, {"idx": 4})]
    lines.append('{"sentence": "好", "id": ' + "9" * 5000 + "}")
    (tmp_path / "test.json").write_text("\n".join(lines), encoding="utf-8")
    found = [example.id for example in read_split(TASKS["tnews"], tmp_path, "test").examples]
    assert found == ["0", "007", "4", "9" * 5000]


SUBMISSIONS = {  # CLUE's page on submissions (2021-09-04) and its paddlenlp baselines
    "afqmc": "afqmc_predict.json",
    "tnews": "tnews11_predict.json",
    "iflytek": "iflytek_predict.json",
    "cmnli": "cmnli_predict.json",
    "ocnli": "ocnli_50k_predict.json",
    "cluewsc2020": "cluewsc11_predict.json",
    "csl": "csl_predict.json",
    "c3": "c311_predict.json",
    "chid": "chid11_predict.json",
    "cmrc2018": "cmrc2018_predict.json",
}


def test_names_of_submissions():
    assert {name: task.predictions_file for name, task in TASKS.items()} == SUBMISSIONS
    recipes = Path(__file__).parents[4] / "recipes" / "tasks"
    names = {path.stem: find_task(str(path)).predictions_file for path in recipes.glob("*.toml")}
    assert names["eprstmt"] == "eprstmt_predict.json"  # FewCLUE, resources/fewclue_submit_examples
    assert names["bustm"] == "bustm_predict.json"
    assert names["cluewsc"] == "cluewscf_predict.json"


@pytest.mark.parametrize("name", ["tnews", "cluewsc2020", "c3", "chid"])
def test_the_older_test_set_has_the_older_name(tmp_path, name):
    path = tmp_path / "old.toml"
    path.write_text(f'like = "{name}"\nname = "old"\ntest = ["test1.0.json"]\n', encoding="utf-8")
    assert find_task(str(path)).predictions_file == SUBMISSIONS[name].replace("11_", "10_")
