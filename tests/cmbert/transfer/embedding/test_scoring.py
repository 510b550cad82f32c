"""Scoring, truncation, mining and opening of embedding models, on a tiny one made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sentence_transformers.util import mine_hard_negatives

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError
from cmbert.export.hf import export_folder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.transfer.embedding.pairs import Graded, Pair
from cmbert.transfer.embedding.scoring import (
    MINING_MARGIN,
    count_truncated,
    encode,
    mine_negatives,
    open_embedder,
    score_pairs,
)

WORDS = ("天气", "公园", "北京", "大学", "酒店", "房间", "经济", "改革", "价格", "图书")
TEXTS = [f"{a}{b}很好" for a in WORDS for b in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_directory):
    """An exported model with random weights: 3 layers of 32."""
    config = ModelConfig(
        num_layers=3, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=384, local_window=16, max_length=64
    )
    model = MaskedLanguageModel(config)
    initialise(model, seed=0)
    output = tmp_path_factory.mktemp("exported") / "model"
    export_folder(model.state_dict(), config, tokenizer_directory, output, format="hf", texts=TEXTS[:3], card=str)
    return output


@pytest.fixture(scope="module")
def embedder(folder):
    return open_embedder(str(folder), 32)


def test_embeddings_are_the_mean_of_real_tokens(embedder, folder):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    texts = ["今天天气很好", "书", "公园" * 40]
    found = encode(embedder, texts, "test")
    for text, embedding in zip(texts, found, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            mean = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][0].mean(0)
        np.testing.assert_allclose(embedding, (mean / mean.norm()).numpy(), atol=2e-6)


def test_score_against_a_plain_computation(embedder):
    random = np.random.default_rng(0)
    rows = [Graded(TEXTS[a], TEXTS[b], int(c)) for a, b, c in random.integers(0, [100, 100, 2], (60, 3))]
    rows = [row for row in rows if row.first != row.second]
    score = score_pairs(embedder, rows)
    cosines = [float(np.dot(*encode(embedder, [row.first, row.second], "test"))) for row in rows]
    labels = [row.grade for row in rows]
    assert score.pearson == pytest.approx(np.corrcoef(cosines, labels)[0, 1], abs=1e-5)
    ranks = [stats.rankdata(np.round(values, 6)) for values in (cosines, labels)]
    assert score.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)
    like = np.array([cosine for cosine, label in zip(cosines, labels, strict=True) if label])
    assert score.mean_cosine_label_1 == pytest.approx(like.mean(), abs=1e-5)
    assert score.alignment == pytest.approx((2 - 2 * like).mean(), abs=1e-5)
    assert score.label_1_share == np.mean(labels)
    assert score_pairs(embedder, rows) == score


def test_truncation_is_counted(embedder, caplog):
    def tokens(text):
        return len(embedder.tokenizer(text)["input_ids"])

    texts = ["书" * count for count in range(1, 60)]
    expected = sum(tokens(text) > 32 for text in texts)
    assert 0 < expected < len(texts)
    assert count_truncated(embedder, texts) == expected
    with caplog.at_level("INFO"):
        score_pairs(embedder, [Graded(text, texts[0], place % 2) for place, text in enumerate(texts)])
    assert f"{expected} of {len(texts)} scored texts are longer than the model reads, and cut" in caplog.text


def test_mining_equals_the_librarys(embedder, monkeypatch, caplog):
    monkeypatch.setattr("cmbert.transfer.embedding.scoring.MINING_ANCHORS", 7)
    random = np.random.default_rng(1)
    pairs = [Pair(TEXTS[a], TEXTS[b]) for a, b in random.integers(0, 100, (50, 2)) if a != b]
    pairs = list(dict.fromkeys([*pairs, Pair(pairs[0].anchor, TEXTS[7]), Pair(TEXTS[3], pairs[0].anchor)]))
    with caplog.at_level("INFO"):
        mined = mine_negatives(embedder, pairs)
    with_negative = sum(pair.negative is not None for pair in mined)
    assert f"{with_negative} of {len(pairs)} pairs have a mined negative" in caplog.text
    assert [pair[:2] for pair in mined] == [pair[:2] for pair in pairs]
    rows = Dataset.from_dict({"anchor": [p.anchor for p in pairs], "positive": [p.positive for p in pairs]})
    theirs = mine_hard_negatives(
        rows, embedder, relative_margin=MINING_MARGIN, num_negatives=1, range_max=100, verbose=False
    )
    expected = {(row["anchor"], row["positive"]): row["negative"] for row in theirs}
    assert len(expected) > 10
    assert {(p.anchor, p.positive): p.negative for p in mined if p.negative} == expected
    assert mine_negatives(embedder, pairs) == mined


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def with_another_vocabulary(folder):
    config = json.loads((folder / "tokenizer.json").read_text())
    config["added_tokens"].append(config["added_tokens"][-1] | {"id": 384, "content": "[MORE]"})
    (folder / "tokenizer.json").write_text(json.dumps(config))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_tokenizer, r"no tokenizer \(tokenizer\.json\)"),
        (with_another_vocabulary, "the tokenizer has 385 ids, the model 384"),
        (without_weights, r"transformers cannot load it"),
        (without_config, r"config.json"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_models_that_cannot_be_used(folder, tmp_path, spoil, message):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    spoil(spoilt)
    with pytest.raises(CheckpointError, match=message):
        open_embedder(str(spoilt), 32)


def test_a_length_that_the_model_cannot_take(folder):
    with pytest.raises(ConfigError, match=r"--max-length 65: .* takes up to 64 tokens"):
        open_embedder(str(folder), 65)
