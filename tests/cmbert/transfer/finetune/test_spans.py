"""Where an answer stands in a text, and that no cut or window takes it away: tokens are counted, not characters."""

from dataclasses import replace

import pytest

from cmbert.transfer.finetune.items import Cutter, prepare
from cmbert.transfer.tasks.fields import Example
from cmbert.transfer.tasks.passages import find_answer
from cmbert.transfer.tasks.task import Task, find_task

TWICE = "北京是首都。他在上海读书，后来去了北京。"
SPANS = Task(name="s", reader="cmrc")
EMOJI = "😀 " * 60  # some tokenizers make several tokens of each, some a word of those that touch


@pytest.mark.parametrize(
    ("context", "answer", "start", "found"),
    [
        (TWICE, "北京", 16, (17, 19)),
        (TWICE, "北京", 17, (17, 19)),
        (TWICE, "北京", 1, (0, 2)),
        (TWICE, "北京", 8, (0, 2)),
        (TWICE, "北京", 9, (17, 19)),
        ("甲乙甲乙甲", "甲", 1, (0, 1)),  # two as near: the first
        ("甲乙甲乙甲", "甲", 3, (2, 3)),
        (TWICE, "北京", 10_000, (17, 19)),
        (TWICE, "北京", -1, (0, 2)),
        (TWICE, "北京", -10_000, (0, 2)),
        (TWICE, "广州", 3, None),
        (TWICE, " 北京\n", 16, (17, 19)),
        ("它在 1862 年建成", "1862年", 0, (3, 9)),
        ("它在1862年建成", "1862\u3000年", 0, (2, 7)),
        ("北 京，北 京，", "北京", 4, (4, 7)),
        ("北\n京", "北京", 0, (0, 3)),
        ("甲", "甲乙", 0, None),
        ("甲" * 300_000 + "乙", "甲" * 1000 + "乙", 5, (299_000, 300_001)),
        ("甲 " * 150_000 + "乙", "甲" * 1000 + "乙", 5, (298_000, 300_001)),
    ],
)
def test_the_answer_nearest_to_the_given_start(context, answer, start, found):
    assert find_answer(context, answer, start) == found


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("max_length", [16, 23, 40, 64])
def test_an_answer_across_an_edge_is_whole_in_a_window(request, kind, max_length):
    text = "今天天气很好，不喜欢这家酒店" * 7
    places = range(0, 90, 7)
    examples = [Example("q", (("好？", text),), None, (text[p : p + 3],), p, p + 3) for p in places]
    for place, item in zip(places, prepare(request.getfixturevalue(kind), SPANS, examples, max_length), strict=True):
        assert not item.lost
        assert all(len(part.ids) <= max_length and part.whole for part in item.parts)
        for part, (first, last) in zip(item.parts, item.spans, strict=True):
            if last:
                assert part.offsets[first][0] <= place
                assert part.offsets[last][1] >= place + 3


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_white_space_at_the_ends_of_an_answer(request, kind):
    context = "它在 今天 建成。"
    example = Example("q", (("好？", context),), None, (" 今天 ",), 2, 6)
    (item,) = prepare(request.getfixturevalue(kind), SPANS, [example], 64)
    assert not item.lost


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("question", [EMOJI, "今" * 60, "。" * 500])
def test_a_long_question_is_cut_by_tokens_and_counted(request, kind, question):
    backbone = request.getfixturevalue(kind)
    context = "天气很好。" * 8
    (item,) = prepare(backbone, SPANS, [Example("q", ((question, context),), None, ("很好",), 2, 4)], 32)
    asked = [sum(not second for second in part.second) for part in item.parts]
    assert max(asked) <= 17  # half of what is left beside [CLS] and two [SEP], and those
    assert max(len(part.ids) for part in item.parts) <= 32
    assert not item.lost
    assert not any(part.whole for part in item.parts)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("sides", [(EMOJI, EMOJI), ("今" * 300, ""), ("", "今" * 300), (EMOJI, "今" * 300), ("", "")])
def test_the_blank_of_a_passage_is_never_cut_away(request, kind, sides):
    backbone = request.getfixturevalue(kind)
    left, right = sides
    context = f"{left}____{right}"
    kept = (len(left), len(left) + 4)
    example = Example("b", (("很好", context), ("很差不好", context)), 0, kept=kept)
    (item,) = prepare(backbone, replace(find_task("chid"), max_length=48), [example], 48)
    for part in item.parts:
        read = {char for second, pair in zip(part.second, part.offsets, strict=True) if second for char in range(*pair)}
        assert len(part.ids) <= 48
        assert part.whole == (not left and not right)
        text = Cutter(backbone.tokenizer).cut(context, len(part.ids), kept)
        assert "____" in text
        assert len(read) >= 4
    long = [len(part.ids) for part in item.parts]
    assert max(long) >= 44 or not left + right  # the room is used, on one side if the other is empty


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_cut_texts_hold_what_is_kept(request, kind):
    cutter = Cutter(request.getfixturevalue(kind).tokenizer)
    text = "今天" * 50 + "____" + "天气，" * 50
    for kept in ((100, 104), (0, 4), (len(text) - 4, len(text)), (50, 120)):
        for room in (1, 8, 9, 40, 100):
            part = cutter.cut(text, room, kept)
            assert text[slice(*kept)] in part
            needed = len(Cutter(cutter.tokenizer).offsets(text[slice(*kept)]))
            assert len(Cutter(cutter.tokenizer).offsets(part)) <= max(room, needed)
    assert cutter.cut("", 3) == ""


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_marks_of_a_pronoun_are_never_cut_away(request, kind):
    text = "今天" * 100 + "_酒店_很好[它]" + "天气" * 10
    example = Example("w", ((text, None),), 1, kept=(200, 209))
    (item,) = prepare(request.getfixturevalue(kind), replace(find_task("cluewsc2020"), max_length=32), [example], 32)
    (part,) = item.parts
    assert not part.whole
    assert len(part.ids) <= 32
    ids = request.getfixturevalue(kind).tokenizer("_酒店_很好[它]", add_special_tokens=False)["input_ids"]
    middle = ids[1:-1]
    assert any(part.ids[place : place + len(middle)] == middle for place in range(len(part.ids)))
