"""Held-out scores: the same rows and masks for every model, parity with a naive loss, position buckets that add up."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cmbert.config.load import load_recipe
from cmbert.data.shards import ShardSet
from cmbert.evaluate.pseudo_perplexity import MASK_RATE, evaluate, heldout_reader, positions_in_piece, unigram_loss
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.tokenizer import MASK_ID, Tokenizer


@pytest.fixture
def model(recipe_file: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(load_recipe(recipe_file).model)
    initialise(model, 0)
    return model.eval()


def test_score_is_the_naive_mean_and_repeats(model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path) -> None:
    score = evaluate(model, tokenizer, shards, context=64, max_rows=20)
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


def test_positions_restart_with_each_piece(tokenizer: Tokenizer, shards: Path) -> None:
    batch = heldout_reader(tokenizer, shards, 64).micro_batch([0, 1], MASK_RATE)
    place = torch.cat([torch.arange(n) for n in batch.cu_seqlens.diff().tolist()])
    assert positions_in_piece(batch).tolist() == place[batch.masked_positions].tolist()


def test_unigram_loss_is_the_entropy_of_the_tokens(shards: Path, tokenizer: Tokenizer) -> None:
    opened = ShardSet(shards)
    tokens = np.concatenate([opened.read(index)[0] for index in range(opened.num_documents)])
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert unigram_loss([opened], tokenizer.vocab_size) == pytest.approx(-(share * np.log(share)).sum())
