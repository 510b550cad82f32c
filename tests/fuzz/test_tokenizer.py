"""tokenizer.json as people make and damage it: what is opened encodes any text, the others are one line."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError
from cmbert.export.hf import is_export
from cmbert.model.folder import read_config
from cmbert.tokenizer import Tokenizer, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS
from data_tools.encoding.encoders import batch_encoder
from tests.fuzz.doors import (
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
    json_bytes,
)

TEXTS = ("今天天气很好。", "I'm\t３ [MASK]\r\n😀e\u0301", "\0\u2028", "a" * 300, "")
SPECIAL = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
ALPHABET = {character: len(SPECIAL) + n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_level() -> tokenizers.Tokenizer:
    vocabulary = SPECIAL | ALPHABET | {"ä»": 261, "ä»Ĭ": 262}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("ä", "»"), ("ä»", "Ĭ")]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def others() -> list[tokenizers.Tokenizer]:
    """Return tokenizers of other kinds, all with the special ids in their places."""
    words = SPECIAL | {"今": 5, "天": 6, "##天": 7, "a": 8}
    made = [
        tokenizers.Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]")),
        tokenizers.Tokenizer(models.WordPiece(vocab=words, unk_token="[NONE]")),
        tokenizers.Tokenizer(models.WordLevel(vocab=words, unk_token="[UNK]")),
        tokenizers.Tokenizer(models.WordLevel(vocab=words, unk_token="[NONE]")),
        tokenizers.Tokenizer(models.Unigram([(token, -1.0) for token in words], unk_id=1)),
        tokenizers.Tokenizer(models.Unigram([(token, -1.0) for token in words], unk_id=None)),
        tokenizers.Tokenizer(models.BPE(vocab=words, merges=[], unk_token="[UNK]")),
        tokenizers.Tokenizer(models.BPE(vocab=words, merges=[], unk_token="[NONE]")),
        tokenizers.Tokenizer(models.BPE(vocab=SPECIAL | {"z": 99}, merges=[])),
    ]
    for backend in made:
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


FILES = [json.loads(backend.to_str()) for backend in (byte_level(), *others())]
ODD_PARTS: list[tuple[str, Any]] = [
    ("truncation", {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
    ("padding", {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"}),
    ("normalizer", None), ("normalizer", {"type": "Lowercase"}),
    ("pre_tokenizer", None), ("pre_tokenizer", {"type": "Whitespace"}), ("decoder", None),
    ("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}),
    ("added_tokens", []),
    ("added_tokens", [{"id": 400, "content": "<far>", "single_word": False, "lstrip": False, "rstrip": False,
                       "normalized": False, "special": False}]),
    ("added_tokens", [{"id": 2, "content": "<twice>", "single_word": False, "lstrip": False, "rstrip": False,
                       "normalized": False, "special": True}]),
]  # fmt: skip


@st.composite
def odd_files(draw: st.DrawFn) -> bytes:
    """Draw a tokenizer.json: of another kind, with other parts, ids moved, doubled or with holes, or damaged."""
    value = json.loads(json.dumps(draw(st.one_of(st.just(FILES[0]), st.sampled_from(FILES)))))
    for name, part in draw(st.lists(st.sampled_from(ODD_PARTS), max_size=2)):
        value[name] = part
    vocabulary = value["model"]["vocab"]
    if isinstance(vocabulary, dict) and draw(st.booleans()):
        token, other = (draw(st.sampled_from(sorted(vocabulary))) for _ in range(2))
        way = draw(st.sampled_from(("hole", "twice", "swap", "drop", "far", "dropout", "merge")))
        if way in ("hole", "far"):
            vocabulary[token] = len(vocabulary) + (1 if way == "hole" else 10**9)
        elif way == "twice":
            vocabulary[token] = vocabulary[other]
        elif way == "swap":
            vocabulary[token], vocabulary[other] = vocabulary[other], vocabulary[token]
        elif way == "drop":
            del vocabulary[token]
        elif way == "dropout":
            value["model"]["dropout"] = 0.5
        elif "merges" in value["model"]:
            value["model"]["merges"] = [["今", "天"], *value["model"]["merges"]]
    if draw(st.booleans()):
        value["model"] = draw(damaged_values(value["model"])) if draw(st.booleans()) else value["model"]
        value = draw(damaged_values(value)) if draw(st.booleans()) else value
    raw = json_bytes(value)
    return draw(damaged_bytes(raw)) if draw(st.integers(0, 3)) == 0 else raw


def use(tokenizer: Tokenizer) -> None:
    """Do with a tokenizer what training, evaluation and preprocessing do."""
    size = tokenizer.vocab_size
    figures_of = [tokenizer.token_character_lengths(), tokenizer.sentence_end_tokens()]
    for figures in figures_of + ([tokenizer.token_byte_lengths()] if tokenizer.is_byte_level else []):
        assert figures.shape == (size,)
    for text in TEXTS:
        ids = tokenizer.encode(tokenizer.normalize(text))
        assert all(0 <= token < size for token in ids)
        tokenizer.decode(ids)


@contextlib.contextmanager
def no_panic() -> Any:
    """Let a panic of Rust, which is no Exception, be a failure that hypothesis can shrink."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise AssertionError(f"panic: {error}") from error
        raise


@given(raw=odd_files())
@inputs_at_this_door()
def test_tokenizers(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    with no_panic():
        tokenizer = accepts_or_says(lambda: load_tokenizer(tmp_path), str(path))
        if tokenizer is not None:
            use(tokenizer)


def save(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    value = json.loads(json.dumps(FILES[0]))
    change(value)
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_a_file_that_cuts_and_fills_texts_does_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes truncation and padding into tokenizer.json when it was last called with them."""
    plain = load_tokenizer(save(tmp_path, lambda value: None)).encode("今天天气很好。")
    cut = load_tokenizer(save(tmp_path, lambda value: value.update(dict(ODD_PARTS[:2]))))
    assert cut.encode("今天天气很好。") == plain
    monkeypatch.setattr(
        "data_tools.encoding.encoders.probe_texts", lambda: ["今天天气"]
    )  # what proves encoders takes seconds
    encoded = batch_encoder(cut).encode(["今天天气很好。", "今"])
    assert encoded.ids.tolist() == [*plain, *cut.encode("今")]
    assert encoded.lengths.tolist() == [len(plain), 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value["model"]["vocab"].update({"ä»Ĭ": 500}), "have not the ids 0 to 262, each once"),
        (lambda value: value["model"]["vocab"].update({"ä»Ĭ": 261}), "have not the ids|not a tokenizer"),
        (lambda value: value["model"].update({"dropout": 0.1}), "dropout 0.1 makes other ids of the same text"),
        (lambda value: value["model"].update({"unk_token": "[NONE]"}), "not a tokenizer.json that can be used"),
        (
            lambda value: value["model"]["vocab"].update({"[mask]": value["model"]["vocab"].pop("[MASK]")}),
            "no token is its MASK; name one of its tokens as mask_token",
        ),
    ],
)
def test_what_cannot_be_relied_on_is_refused(tmp_path: Path, change: Callable, words: str) -> None:
    def without_a_byte(value: dict[str, Any]) -> None:
        value["added_tokens"] = []
        change(value)
        if value["model"].get("unk_token"):
            del value["model"]["vocab"]["Ĭ"]
            value["model"]["vocab"] |= {"ä»Ĭ": ALPHABET["Ĭ"], "x" * 9: 262}
            value["model"]["merges"] = []

    with pytest.raises(ConfigError, match=words):
        use(load_tokenizer(save(tmp_path, without_a_byte)))


CONFIG = {
    "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 384, "norm_eps": 1e-5, "local_attention": 16,
    "global_attn_every_n_layers": 3, "max_position_embeddings": 512, "initializer_range": 0.02, "pad_token_id": 0,
    "cls_token_id": 2, "sep_token_id": 3,
    "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4}
                        for kind in ("full_attention", "sliding_attention")},
}  # fmt: skip


@given(raw=damaged_json(CONFIG))
@inputs_at_this_door()
def test_configurations_of_exported_folders(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    config = accepts_or_says(lambda: read_config(tmp_path), str(path))
    assert config is None or (isinstance(config, ModelConfig) and config.hidden_size % config.num_heads == 0)
    accepts_or_says(lambda: is_export(tmp_path), str(path))


def test_a_sound_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert np.isclose(read_config(tmp_path).norm_eps, 1e-5)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": "2"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: num_layers: must be int, found '2'; give a folder"):
        read_config(tmp_path)
