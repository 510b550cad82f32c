"""Texts of any characters through fine-tuning's encoding: nothing above the length, no answer and no blank lost."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cmbert.transfer.finetune.backbone import Backbone, load_auto_tokenizer
from cmbert.transfer.finetune.items import prepare
from cmbert.transfer.tasks.fields import Example
from cmbert.transfer.tasks.passages import find_answer
from cmbert.transfer.tasks.task import find_task
from tests.fuzz.doors import inputs_at_this_door

LETTERS = "今天很好。，a7_ \n\t\r\u3000\xa0\u200b\u200d\u2028\x85\x00\x1c\ufeff\ufffd\ue000\u0301\U0001f600\U00020000⽅"
TEXTS = st.one_of(
    st.text(LETTERS, max_size=150),
    st.text(max_size=60),
    st.builds(str.__mul__, st.text(max_size=2), st.integers(0, 150)),
)


@pytest.fixture(scope="module")
def backbones(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Backbone]:
    """Our tokenizer and BERT's, whose words are cut at blanks and marks; no encoder is needed."""
    from transformers import BertTokenizerFast

    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天很好。，_7a"]), encoding="utf-8")
    tokenizers = [load_auto_tokenizer(str(tokenizer_directory)), BertTokenizerFast(str(path))]
    return [Backbone(nn.Module(), tokenizer, 8, 64) for tokenizer in tokenizers]


@given(question=TEXTS, before=TEXTS, answer=TEXTS, after=TEXTS, max_length=st.integers(16, 64), off=st.integers(-9, 9))
@inputs_at_this_door(share=0.15)
def test_spans(
    backbones: list[Backbone], question: str, before: str, answer: str, after: str, max_length: int, off: int
) -> None:
    context = before + answer + after
    place = find_answer(context, answer, len(before) + off) if answer.strip() else None
    start, end = place or (-1, -1)
    if answer.strip():
        assert place is not None
        assert "".join(context[start:end].split()) == "".join(answer.split())
    example = Example("q", ((question, context),), None, (answer,), start, end)
    for backbone in backbones:
        (item,) = prepare(backbone, find_task("cmrc2018"), [example], max_length)
        assert len(item.parts) == len(item.spans) >= 1
        for part, (first, last) in zip(item.parts, item.spans, strict=True):
            assert len(part.ids) <= max_length
            assert first <= last < len(part.ids)
            if last:
                assert part.second[first]
                assert part.second[last]


@given(before=TEXTS, after=TEXTS, idioms=st.lists(TEXTS, min_size=1, max_size=3), max_length=st.integers(16, 64))
@inputs_at_this_door(share=0.15)
def test_blanks(backbones: list[Backbone], before: str, after: str, idioms: list[str], max_length: int) -> None:
    context, kept = f"{before}____{after}", (len(before), len(before) + 4)
    example = Example("b", tuple((idiom, context) for idiom in idioms), 0, kept=kept)
    task = replace(find_task("chid"), max_length=max_length)
    for backbone in backbones:
        (item,) = prepare(backbone, task, [example], max_length)
        for part in item.parts:
            assert len(part.ids) <= max_length
            if part.whole:
                read = [pair for pair, second in zip(part.offsets, part.second, strict=True) if second]
                assert min(left for left, _ in read) <= kept[0]
                assert max(right for _, right in read) >= kept[1]
    line = backbones[1].tokenizer.convert_tokens_to_ids("_")  # BERT's: a token each, whatever stands beside it
    for part in item.parts:
        assert [index for index, second in zip(part.ids, part.second, strict=True) if second].count(line) >= 4
