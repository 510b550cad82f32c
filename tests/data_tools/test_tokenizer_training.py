"""The tokenizer: nothing is lost, nothing unknown, the same bytes twice, loaded by transformers as it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from cmbert.errors import ConfigError
from cmbert.tokenizer import SPECIAL_TOKENS, UNK_ID, Tokenizer, load_tokenizer
from data_tools.tokenizer_training import PATTERN, train_tokenizer

TEXTS = [
    "今天天气很好，我们一起去公园散步。今天天气很好！",
    "北京大学的学生在图书馆读书，学生们说：“我们很好。”",
    "hello world, hello words 123456 3.14",
    "中国人民银行、中国人民大学，中国人民很好。" * 2,
]
HARD_TEXTS = (
    "😀👨‍👩‍👧‍👦🏳️‍🌈 emoji",
    "𠮷野家，𪛖龘㐂〇々",
    "ＡＢＣ１２３，．！",
    "第一行\r\n第二行\r\r\n\n",
    "  两 个  空格\t制表\u3000全角 ",
    "nul\0and\x01control\x7f\u200b\ufeff",
    "[MASK] [CLS]你好[SEP][PAD]",
    "नमस्ते e\u0301 \u1100\u1161 שלום ½①Ⅷ",
    "\U0010ffff\ue000\u0378",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 2), encoding="utf-8")
    output = corpus.parent / "tokenizer"
    train_tokenizer([str(corpus)], output, vocab_size=320)
    return output


@pytest.fixture(scope="module")
def trained(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert UNK_ID not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.normalize(text)
    assert tokenizer.token_byte_lengths()[ids].sum() == len(tokenizer.normalize(text).encode())


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_text_comes_back(trained: Tokenizer, text: str) -> None:
    check_round_trip(trained, text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    check_round_trip(trained, text)


def test_every_character_has_a_place_in_the_pattern() -> None:
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="removed")  # what matches nothing is left
    assert split.pre_tokenize_str(everything) == []


def test_what_is_merged_within() -> None:
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated")
    text = "今天２０２４年，iPhone 15很好！！hello world  \r\n〇年々"
    pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
    expected = [
        "今天",
        "２０２",
        "４",
        "年",
        "，",
        "iPhone",
        " ",
        "15",
        "很好",
        "！！",
        "hello",
        " world",
        "  ",
        "\r\n",
    ]
    assert pieces == [*expected, "〇年々"]


def test_special_tokens_and_size(directory: Path, trained: Tokenizer) -> None:
    assert trained.vocab_size == 320
    assert [trained.backend.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert "Split" in (directory / "tokenizer.json").read_text(encoding="utf-8")
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    assert record["documents"] == 8
    assert record["characters_per_token"] > 0.5


def test_auto_tokenizer_loads_it(directory: Path, trained: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = "今天天气很好，hello 😀"
    assert theirs(text)["input_ids"] == [2, *trained.encode(text), 3]
    assert list(theirs(text)) == ["input_ids", "attention_mask"]
    assert theirs(text, "很好")["input_ids"] == [2, *trained.encode(text), 3, *trained.encode("很好"), 3]
    assert theirs.mask_token_id == 4
    assert theirs.pad_token_id == 0
    assert theirs.model_max_length == 8192
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text


def test_training_is_deterministic(directory: Path, tmp_path: Path) -> None:
    train_tokenizer([str(directory.parent / "texts.jsonl")], tmp_path / "again", vocab_size=320)
    for name in ("tokenizer.json", "tokenizer_config.json", "training.json"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()


def test_an_output_is_made_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = [str(directory.parent / "texts.jsonl")]
    train_tokenizer(corpus, directory, vocab_size=320)
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"other settings \(vocab_size\)"):
        train_tokenizer(corpus, directory, vocab_size=384)


@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [(1000, "multiple of 64; nearest: 960 or 1024"), (256, "smallest is 320"), (8192, "the largest that works is 320")],
)
def test_sizes_that_cannot_be(write_lines: Callable, tmp_path: Path, vocab_size: int, message: str) -> None:
    corpus = write_lines("texts.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(ConfigError, match=message):
        train_tokenizer([str(corpus)], tmp_path / "tokenizer", vocab_size=vocab_size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]
