"""Small models and packed batches for the tests of model and export."""

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


@pytest.fixture
def make_perturbed(make_model, tmp_path, monkeypatch):
    """A model whose norms and biases are not their initial ones and zeros, so that forgetting one shows."""

    # transformers copies model code of folders it loads into the home directory
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make_perturbed(norm, vocab_size=320):
        unusual = {"init_std": 0.1, "norm_eps": 1e-3, "rope_base_local": 500.0, "max_length": 512}
        model = make_model(norm=norm, vocab_size=vocab_size, **unusual)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make_perturbed
