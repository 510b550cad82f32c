"""Units, by hand and by property: the coarsest common cut of words and tokens."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.errors import ConfigError
from data_tools.encoding.align import align
from data_tools.encoding.encode import DocumentEncoder
from data_tools.input.document import Document

# (units, words inside a token: boundaries lost). The tokens are bytes and conftest's CHARACTERS and PAIRS.
BY_HAND = (
    ("今天天气|很好|，我们|去|公园|。", 2),  # words 很|好 in token 很好, words ，|我们 around token ，我
    ("他|在|北京大学|读书|。", 0),  # tokens 北京 and 大学 are one word
    ("乒乓球拍卖|完|了|。", 1),  # words 乒乓球|拍卖, token 球拍
    ("南京市长江大桥", 1),  # words 南京市|长江大桥, token 市长
    ("2024|年|3|月", 0),  # tokens 20 and 24
    ("我|爱|𠮷|野家，", 1),  # 𠮷: four tokens of a byte each; token 家，
    ("第一行|。\n|第一行|\r\n", 1),  # token 。\n; \r\n is one word of two tokens
    ("😀|哈|👨|\u200d|👩", 0),  # emoji are bytes here
    ("３|％|的人", 1),  # a full-width digit of three bytes; token 的人
    ("cab", 0),  # token ab inside a word
    ("www|.|a|-|b|.|com", 0),
    ("caf|é|今天", 0),
    (" | |空", 0),
    ("[|MASK|]", 0),  # text that spells a special token
)


@pytest.fixture(scope="module")
def encoder(known_tokenizer_directory: Path) -> DocumentEncoder:
    pytest.importorskip("rjieba")
    return DocumentEncoder(known_tokenizer_directory, "rjieba")


def units(encoder: DocumentEncoder, text: str) -> list[bytes]:
    """The bytes of each unit of one document."""
    batch = encoder([Document("", "", text)])
    assert batch.lengths.tolist() == [len(batch.tokens)]
    ends = np.cumsum(encoder.token_bytes[batch.tokens])
    starts = (ends - encoder.token_bytes[batch.tokens])[batch.unit_starts].tolist()
    raw = text.encode()
    return [raw[start:end] for start, end in zip(starts, [*starts[1:], len(raw)], strict=True)]


@pytest.mark.parametrize(("marked", "lost"), BY_HAND)
def test_units_by_hand(encoder: DocumentEncoder, marked: str, lost: int) -> None:
    text = marked.replace("|", "")
    assert [unit.decode() for unit in units(encoder, text)] == marked.split("|")
    assert encoder([Document("", "", text)]).tally.lost_boundaries() == lost


def test_a_batch_is_its_documents(encoder: DocumentEncoder) -> None:
    texts = [marked.replace("|", "") for marked, _ in BY_HAND]
    whole = encoder([Document("", "s", text) for text in [*texts, ""]])
    parts = [encoder([Document("", "s", text)]) for text in texts]
    assert whole.tokens.tolist() == np.concatenate([part.tokens for part in parts]).tolist()
    assert whole.unit_starts.tolist() == np.concatenate([part.unit_starts for part in parts]).tolist()
    tally = whole.tally
    assert tally.skipped == {"empty_text": 1}
    assert tally.total("documents") == len(texts)
    assert tally.characters == sum(map(len, texts))
    assert tally.lost_boundaries() == sum(lost for _, lost in BY_HAND)
    lengths = [len(unit) for marked, _ in BY_HAND for unit in marked.split("|")]
    assert tally.unit_lengths.tolist() == np.bincount(lengths, minlength=9).tolist()
    assert tally.token_lengths.sum() == len(whole.tokens)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text("今天很好，我北京大学球拍卖市长。家的人", max_size=6),
            st.text("ab 20 24.-_%", max_size=5),
            st.sampled_from(["\r\n", "\n", "\t", "😀", "👨‍👩‍👧", "𠮷", "㐀", "１", "é", "乒乓球拍卖完了"]),
            st.text(max_size=3),
        ),
        min_size=1,
    ).map("".join)
)
def test_units_are_the_common_cut(encoder: DocumentEncoder, text: str) -> None:
    text = encoder.tokenizer.normalize(text)
    if not text:
        return
    found = units(encoder, text)
    assert b"".join(found).decode() == text
    for unit in found:
        unit.decode()  # never part of a character
    ids = encoder.tokenizer.encode(text)
    token_cuts = set(accumulate(encoder.token_bytes[ids].tolist()))
    word_cuts = set(accumulate(len(word.encode()) for word in encoder.segmenter.cut(text)))
    assert set(accumulate(map(len, found))) == token_cuts & word_cuts


def test_a_lossy_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="not lossless"):
        align("今天", np.array([2]), np.array([3]))
