"""Small models and packed batches for the tests of this folder."""

import itertools

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@pytest.fixture
def pack():
    """lengths -> (input_ids (T,), cu_seqlens (P+1,)) of random tokens."""

    def pack(lengths, vocab_size=128, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(5, vocab_size, (sum(lengths),), generator=generator), cumulative(lengths)

    return pack


@pytest.fixture
def make_model():
    """Config overrides -> an initialised model whose weights are large enough for attention to matter."""

    def make_model(kernels=None, **overrides) -> MaskedLanguageModel:
        sizes = {"num_layers": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "vocab_size": 128}
        model = MaskedLanguageModel(ModelConfig(**sizes | {"init_std": 0.2} | overrides), kernels)
        initialise(model, seed=1)
        return model

    return make_model
