"""Readers of pairs: what each format gives, and that every fault names its file and line."""

import json

import pytest

from cmbert.errors import InputError
from cmbert.transfer.embedding.data import DataPaths, hash_files, read_data
from cmbert.transfer.embedding.pairs import Graded, Pair, read_inference, read_labelled, read_pairs, read_similarity
from cmbert.transfer.embedding.t2ranking import Reference, read_references, resolve


@pytest.fixture
def write(tmp_path):
    def write(lines, name="a.json"):
        path = tmp_path / name
        path.write_text(
            "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines),
            encoding="utf-8",
        )
        return path

    return write


def labelled(first, second, label):
    return {"sentence1": first, "sentence2": second, "label": label}


def test_triplets(write):
    rows = [("问", "答", "否"), ("问", "答", "别"), ("同", "同", "否"), ("问", "另", "问"), ("甲", "乙", "丙")]
    file = read_pairs(write([dict(zip(("query", "title", "neg_title"), row, strict=True)) for row in rows]))
    assert file.is_triplets
    assert file.pairs == [Pair("问", "答", "否"), Pair("问", "另", None), Pair("甲", "乙", "丙")]
    assert file.note == "1 of equal texts, 1 repeated"


def test_label_0_gives_a_hard_negative_to_the_same_first_text_only(write):
    rows = [labelled("甲", "乙", "1"), labelled("甲", "丙", "0"), labelled("丁", "戊", 0), labelled("己", "庚", 1)]
    file = read_pairs(write(rows))
    assert not file.is_triplets
    assert file.pairs == [Pair("甲", "乙", "丙"), Pair("己", "庚")]


def test_labelled(write):
    rows = [labelled("甲", "乙", "1"), labelled("丁", "戊", 0)]
    assert read_labelled(write(rows)) == [Graded("甲", "乙", 1), Graded("丁", "戊", 0)]


def test_inference_takes_contradictions_of_the_same_premise(write):
    rows = [
        labelled("前", "是一", "entailment"),
        labelled("前", "是二", "entailment"),
        labelled("前", "非", "contradiction"),
        labelled("别", "是三", "entailment"),
        labelled("别", "中", "neutral"),
        labelled("别", "疑", "-"),
    ]
    file = read_inference(write(rows))
    assert file.pairs == [Pair("前", "是一", "非"), Pair("前", "是二", "非"), Pair("别", "是三")]
    assert file.note == "2 neutral or undecided"


@pytest.mark.parametrize(
    ("lines", "grades"),
    [
        (
            [{"sentence1": "a", "sentence2": "b", "score": 2.5}, {"sentence1": "c", "sentence2": "d", "score": "5"}],
            [0.5, 1],
        ),
        ([labelled("a", "b", 0.25), labelled("c", "d", 1)], [0.25, 1]),
        (["sentence1\tsentence2\tscore", "a\tb\t4", "c\td\t0"], [0.8, 0]),
        (["train-0||a||b||3", "train-1||c||d||1"], [0.6, 0.2]),
    ],
    ids=["json score", "json label", "tsv with header", "Chinese STS-B"],
)
def test_similarity(write, lines, grades):
    assert read_similarity(write(lines)) == [Graded("a", "b", grades[0]), Graded("c", "d", grades[1])]


GOOD = labelled("甲", "乙", "1")


@pytest.mark.parametrize(
    ("read", "lines", "message"),
    [
        (read_pairs, [GOOD, "{oops"], r"a\.json:2: not a JSON object"),
        (read_pairs, [GOOD, "[1]"], r"a\.json:2: not a JSON object"),
        (read_pairs, ["甲\t乙"], r"a\.json:1: not a JSON object"),
        (read_pairs, [GOOD, "", labelled("甲", "  ", "1")], r"a\.json:3: sentence2 is empty"),
        (read_pairs, [GOOD, labelled("甲", "乙", "2")], r"a\.json:2: label is '2'; it must be 0 or 1"),
        (read_pairs, [labelled("甲", "乙", True)], r"a\.json:1: label is True"),
        (read_pairs, [GOOD, {"sentence1": "a", "sentence2": 3, "label": 0}], "sentence2 must be text, found 3"),
        (read_pairs, [{"query": "a", "title": "b", "neg_title": "c"}, GOOD], r"a\.json:2: no 'query', but 'sentence1'"),
        (read_pairs, [{"text": "a"}], r"a\.json:1: no 'sentence1', but 'text'"),
        (read_pairs, [labelled("甲", "乙", "0")], r"a\.json: no pair with label 1"),
        (read_pairs, [], r"a\.json: empty file"),
        (read_pairs, ["", ""], r"a\.json: only blank lines"),
        (read_inference, [labelled("甲", "乙", "yes")], r"a\.json:1: label is 'yes'; it must be one of entailment"),
        (read_inference, [labelled("甲", "乙", "neutral")], r"a\.json: no line with label entailment"),
        (read_similarity, [labelled("甲", "乙", 5.5)], r"a\.json:1: score is 5\.5"),
        (read_similarity, ["a\tb\tnan"], r"a\.json:1: score is 'nan'"),
        (read_similarity, ["a\tb\t1", "a\tb"], r"a\.json:2: not a graded pair"),
        (read_similarity, ["a\t \t1"], r"a\.json:1: empty sentence"),
        (read_similarity, ["sentence1\tsentence2\tscore"], r"a\.json: only a header"),
        (read_similarity, [""], r"a\.json: only blank lines"),
    ],
)
def test_faults_name_file_and_line(write, read, lines, message):
    with pytest.raises(InputError, match=message):
        read(write(lines))


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        read_pairs(tmp_path / "absent")
    with pytest.raises(InputError, match="a folder"):
        read_labelled(tmp_path)
    (tmp_path / "gbk").write_bytes('{"query": "你好"}'.encode("gbk"))
    with pytest.raises(InputError, match="gbk:1: not UTF-8"):
        read_pairs(tmp_path / "gbk")


@pytest.fixture
def t2ranking(tmp_path):
    folder = tmp_path / "T2Ranking" / "data"
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text('pid\ttext\n0\t零\n1\t一 "引\n2\t二\n3\t三\n4\t四\n', encoding="utf-8")
    (folder / "queries.train.tsv").write_text("qid\ttext\n7\t问七\n8\t问八\n", encoding="utf-8")
    judged = ["qid\t-\tpid\trel", "7\t0\t0\t3", "7\t0\t1\t2", "7\t0\t2\t0", "7\t0\t3\t1", "8\t0\t4\t2"]
    (folder / "qrels.train.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    return folder


def test_t2ranking(t2ranking):
    references = read_references(t2ranking.parent)
    assert references == [Reference(7, 0, 2), Reference(7, 1, 2), Reference(8, 4)]
    texts = resolve(t2ranking, references, negatives=True)
    assert texts == [Pair("问七", "零", "二"), Pair("问七", '一 "引', "二"), Pair("问八", "四")]
    assert resolve(t2ranking, references[2:], negatives=False) == [Pair("问八", "四")]
    (t2ranking / "qrels.train.tsv").unlink()
    (t2ranking / "qrels.retrieval.train.tsv").write_text("qid\tpid\n7\t1\n8\t4\n", encoding="utf-8")
    assert read_references(t2ranking) == [Reference(7, 1), Reference(8, 4)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels.train.tsv", "7\t0\t0\t4\n", r"qrels\.train\.tsv:1: relevance is 4"),
        ("qrels.train.tsv", "7\t0\tx\t2\n", r"qrels\.train\.tsv:1: 'x' is not a whole number"),
        ("qrels.train.tsv", "7\t0\n", r"qrels\.train\.tsv:1: 2 columns, must be 4"),
        ("qrels.train.tsv", "7\t0\t1\t1\n", r"no passage answers a query"),
        ("collection.tsv", "0\t零\n1\t\n4\t四\n2\t二\n", r"collection\.tsv:2: empty text of 1"),
        ("queries.train.tsv", "7\t问\n", r"queries\.train\.tsv: no text of 8"),
        ("queries.train.tsv", "", r"queries\.train\.tsv: empty file"),
    ],
)
def test_t2ranking_faults(t2ranking, name, text, message):
    (t2ranking / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        resolve(t2ranking, read_references(t2ranking), negatives=True)


def test_a_folder_that_is_not_t2ranking(tmp_path):
    with pytest.raises(InputError, match=r"collection\.tsv: no such file; a folder of pairs must be T2Ranking"):
        read_references(tmp_path)


HALF = "好\ud83d"
TRIPLET = {"query": "甲", "title": "乙", "neg_title": "丙"}
READERS = {
    "pairs": (read_pairs, GOOD),
    "triplets": (read_pairs, TRIPLET),
    "labelled": (read_labelled, GOOD),
    "inference": (read_inference, GOOD | {"label": "entailment"}),
    "similarity": (read_similarity, GOOD | {"label": 0.5}),
}


@pytest.mark.parametrize(("read", "record"), READERS.values(), ids=READERS)
def test_half_of_a_surrogate_pair(tmp_path, read, record):
    """transformers#43459, tokenizers#1011: what cuts an emoji in two leaves one."""
    path = tmp_path / "a.json"
    for key in (*record, "id"):
        path.write_text(f"{json.dumps(record)}\n{json.dumps(record | {key: HALF})}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.json:2: .*holds half of a surrogate pair"):
            read(path)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize(("read", "record"), READERS.values(), ids=READERS)
def test_a_line_separator_inside_a_record(write, read, record, odd):
    rows = [record, {key: odd.join((value, value)) if key != "label" else value for key, value in record.items()}]
    found = read(write(rows))
    found = getattr(found, "pairs", found)
    assert odd in found[1][0]
    assert len(found) == 2


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_characters_that_end_no_line_of_a_table(t2ranking, tmp_path, odd):
    path = tmp_path / "sts.tsv"
    path.write_text(f"\n甲{odd}甲\t乙\t4\r\nb\tc\t1\r\n", encoding="utf-8", newline="")
    assert read_similarity(path) == [Graded(f"甲{odd}甲", "乙", 0.8), Graded("b", "c", 0.2)]
    for name, text in (("collection.tsv", "0\t零"), ("queries.train.tsv", "7\t问")):
        (t2ranking / name).write_text(f"{text}{odd}字\r\n", encoding="utf-8", newline="")
    (t2ranking / "qrels.train.tsv").write_text("7\t0\t0\t3\r\n", encoding="utf-8", newline="")
    assert resolve(t2ranking, read_references(t2ranking), negatives=True) == [Pair(f"问{odd}字", f"零{odd}字")]


@pytest.mark.parametrize(
    ("read", "lines", "message"),
    [
        (read_inference, [labelled("甲", "乙", ["entailment"])], r"a\.json:1: label is \['entailment'\]"),
        (
            read_pairs,
            ['{"sentence1": "a", "sentence2": "b", "label": ' + "9" * 5000 + "}"],
            r"a\.json:1: label is Deci",
        ),
        (read_pairs, [labelled("甲", "乙", 1.0)], r"a\.json:1: label is 1\.0; it must be 0 or 1"),
        (read_pairs, [labelled("甲", "乙", float("nan"))], r"a\.json:1: label is nan"),
        (read_pairs, [{"x\u2028": 1}], r"a\.json:1: no 'sentence1', but"),
        (read_pairs, [labelled("a\0", "b", 1)], r"a\.json:1: sentence1 holds a NUL"),
        (read_pairs, ["[" * 100_000], r"a\.json:1: nested too deeply"),
        (read_similarity, [labelled("甲", "乙", "9" * 5000)], r"a\.json:1: score is '999"),
        (read_similarity, [labelled("甲", "乙", 10**400)], r"a\.json:1: score is 1000"),
    ],
)
def test_odd_values_make_one_short_line(write, read, lines, message):
    path = write(lines)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < len(str(path)) + 300


@pytest.mark.parametrize("code", ["gb18030", "utf-16"])
def test_other_encodings_say_how_to_convert(tmp_path, code):
    (tmp_path / "a.json").write_text(json.dumps(GOOD, ensure_ascii=False), encoding=code)
    with pytest.raises(InputError, match=rf"a\.json:1: .*iconv -f {code.upper()} -t UTF-8"):
        read_pairs(tmp_path / "a.json")


def test_what_is_left_out_is_counted(write, t2ranking, caplog):
    rows = [labelled("甲", "乙", 1), labelled("甲", "丙", 0), labelled("甲", "丁", 0), labelled("戊", "己", 0)]
    assert read_pairs(write(rows)).note == "2 of label 0 that are no pair's negative"
    rows = [("前", "是", "entailment"), ("前", "是", "entailment"), ("前", "前", "entailment")]
    rows += [("前", "非", "contradiction"), ("别", "非", "contradiction"), ("别", "中", "neutral")]
    note = "1 neutral or undecided, 1 of equal texts, 1 repeated, 1 contradictions that are no pair's negative"
    assert read_inference(write([labelled(*row) for row in rows])).note == note
    with caplog.at_level("INFO"):
        read_references(t2ranking)
    assert "qrels.train.tsv: left out: 1 of relevance 1, 0 repeated" in caplog.text


def test_pairs_that_are_drawn_or_in_two_files_are_counted(write, caplog):
    rows = [labelled(f"甲{i}", f"乙{i}", 1) for i in range(6)]
    first, second = write(rows[:4], "a.json"), write(rows[2:], "b.json")
    evaluation = write([labelled("x", "y", 1), labelled("x", "z", 0)], "eval.json")
    paths = DataPaths((first, second), evaluation, (), ())
    with caplog.at_level("INFO"):
        data = read_data(paths, hash_files(paths), sizes=(3,), negatives="none", seed=5)
    assert len(data.pairs) == 3
    assert "b.json: 2 of them are in the files before it, and count once" in caplog.text
    assert "3 of 6 pairs are trained on, drawn by seed 5" in caplog.text
