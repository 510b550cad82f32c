"""Held-out scores: the same rows and masks for every model, parity with a naive loss, position buckets that add up."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cmbert.config.load import load_recipe
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import CheckpointError
from cmbert.evaluate.pseudo_perplexity import MASK_RATE, evaluate, heldout_reader, positions_in_segment
from cmbert.evaluate.unigram import UNIGRAM_FILE, unigram_loss, unigram_of_run
from cmbert.export.release import open_model
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.tokenizer import Tokenizer
from tests.conftest import make_shards
from tests.integration.launching import settings, train
from tests.own_ids import MASK_ID


@pytest.fixture
def model(recipe_file: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(load_recipe(recipe_file).model)
    initialise(model, 0)
    return model.eval()


def test_score_is_the_naive_mean_and_repeats(
    model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        score = evaluate(model, tokenizer, shards, context=64, max_rows=20)
    assert "the first 20 of " in caplog.text
    reader = heldout_reader(tokenizer, shards, 64)
    losses, hits = [], 0
    for row in range(20):
        batch = reader.micro_batch([row], MASK_RATE)
        assert (batch.input_ids[batch.masked_positions] == MASK_ID).all()
        for place, target in zip(batch.masked_positions.tolist(), batch.targets.tolist(), strict=True):
            probabilities = model.logits(batch.input_ids, batch.cu_seqlens).softmax(-1)[place]
            losses.append(-math.log(probabilities[target].item()))
            hits += int(probabilities.argmax().item() == target)
    assert score.heldout_loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert score.masked_tokens == len(losses)
    assert score.masked_accuracy == hits / len(losses)
    assert score.pseudo_perplexity == pytest.approx(math.exp(score.heldout_loss))
    assert evaluate(model, tokenizer, shards, context=64, max_rows=20) == score


def test_buckets_add_up(model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path) -> None:
    score = evaluate(model, tokenizer, shards, context=256)
    assert [(b.start, b.end) for b in score.by_position] == [(0, 64), (64, 128), (128, 256)]
    assert sum(b.masked_tokens for b in score.by_position) == score.masked_tokens
    total = sum(b.loss * b.masked_tokens for b in score.by_position)
    assert total / score.masked_tokens == pytest.approx(score.heldout_loss)


def test_positions_restart_with_each_segment(tokenizer: Tokenizer, shards: Path) -> None:
    batch = heldout_reader(tokenizer, shards, 64).micro_batch([0, 1], MASK_RATE)
    place = torch.cat([torch.arange(n) for n in batch.cu_seqlens.diff().tolist()])
    assert positions_in_segment(batch).tolist() == place[batch.masked_positions].tolist()


def test_unigram_loss_is_the_entropy_of_the_tokens(shards: Path, tokenizer: Tokenizer) -> None:
    opened = ShardSet(shards)
    tokens = np.concatenate([opened.read(index)[0] for index in range(opened.num_documents)])
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert unigram_loss([opened], [3.0], tokenizer.vocab_size) == pytest.approx(-(share * np.log(share)).sum())


def test_unigram_loss_follows_the_blend(tmp_path: Path, tokenizer: Tokenizer, shards: Path) -> None:
    """A set of ten times the tokens with a tenth of the weight does not hide what is mostly read."""
    uniform = make_shards(tmp_path / "small", tokenizer, lengths=[40] * 3)
    opened = [ShardSet(shards), ShardSet(uniform)]
    assert opened[0].num_tokens > 10 * opened[1].num_tokens
    parts = [s.token_counts(tokenizer.vocab_size) / s.num_tokens for s in opened]
    share = 0.1 * parts[0] + 0.9 * parts[1]
    share = share[share > 0]
    assert unigram_loss(opened, [1, 9], tokenizer.vocab_size) == pytest.approx(-(share * np.log(share)).sum())
    alone = unigram_loss(opened[1:], [1], tokenizer.vocab_size)
    assert unigram_loss(opened, [0, 2], tokenizer.vocab_size) == pytest.approx(alone)


def test_unigram_loss_is_counted_once(tmp_path: Path, tokenizer: Tokenizer, shards: Path, monkeypatch) -> None:
    other = make_shards(tmp_path / "small", tokenizer, lengths=[40] * 3)
    opened = [ShardSet(shards), ShardSet(other)]
    found = unigram_of_run(tmp_path, opened, [100, 200], tokenizer.vocab_size)
    assert found == unigram_loss(opened, [1, 2], tokenizer.vocab_size)
    with monkeypatch.context() as patch:
        patch.setattr(ShardSet, "token_counts", None)
        assert unigram_of_run(tmp_path, opened, [101, 200], tokenizer.vocab_size) == found
    assert unigram_of_run(tmp_path, opened, [200, 100], tokenizer.vocab_size) != found
    alone = unigram_of_run(tmp_path, opened[:1], [1], tokenizer.vocab_size)
    assert alone == unigram_loss(opened[:1], [1], tokenizer.vocab_size)
    (tmp_path / UNIGRAM_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"unigram\.json: .*; remove it, it is made again"):
        unigram_of_run(tmp_path, opened[:1], [1], tokenizer.vocab_size)


def test_a_sample_of_a_large_set_is_counted(shards: Path, tokenizer: Tokenizer) -> None:
    opened = ShardSet(shards)
    assert 0.2 < opened.token_counts(tokenizer.vocab_size, opened.num_tokens // 4).sum() / opened.num_tokens < 0.3
    counts = opened.token_counts(tokenizer.vocab_size, opened.num_tokens)
    assert (counts == opened.token_counts(tokenizer.vocab_size)).all()


def test_the_blend_is_what_the_checkpoint_read(recipe_file: Path, shards: Path, other_shards: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    text = text.replace(
        "[schedule]", f'weight = 0.1\n[[data.sources]]\npath = "{other_shards}"\nweight = 0.9\n[schedule]'
    )
    recipe_file.write_text(text, encoding="utf-8")
    train(recipe_file, *settings("train.total_tokens=2048"))
    trained = open_model(recipe_file.parent / "run")
    assert [found.path for found in trained.training_shards] == [shards, other_shards]
    assert trained.training_amounts in ([3, 29], [4, 28])  # of 32 rows
