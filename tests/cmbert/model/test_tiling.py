"""A model started from a smaller one: what it computes, where its weights come from, what is refused."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from cmbert.config.schema import ModelConfig
from cmbert.errors import ConfigError
from cmbert.model.tiling import check_tiling, source_layer, tile_weights

TWICE = {"hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
LENGTHS = [70, 5, 130]


def tiled(small, large, fresh_share=0.0):
    tile_weights(small.state_dict(), small.config, large, fresh_share)
    return large


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_twice_the_width_and_heads_computes_the_same(make_model, pack, norm):
    small = make_model(norm=norm)
    with torch.no_grad():
        for name, parameter in small.named_parameters():  # as after training: norms are not ones, nor biases zeros
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    large = tiled(small, make_model(norm=norm, **TWICE))
    batch = pack(LENGTHS)
    assert_close(large.logits(*batch), small.logits(*batch), rtol=1e-3, atol=1e-3)
    other = make_model(norm=norm, **TWICE)
    assert (other.logits(*batch) - small.logits(*batch)).abs().max() > 1  # so a wrong weight would show


def test_the_middle_of_the_large_model_is_the_small_one(make_model):
    small, large = make_model(), make_model(hidden_size=48, num_heads=3, intermediate_size=72)
    tiled(small, large)
    embedding = large.model.embeddings.tok_embeddings.weight
    assert torch.equal(embedding[:, 8:40], small.model.embeddings.tok_embeddings.weight)
    assert torch.equal(embedding[:, 40:], small.model.embeddings.tok_embeddings.weight[:, :8])
    rows = large.model.layers[1].mlp.Wi.weight[12:60]  # of the first half, 72 rows
    source = small.model.layers[1].mlp.Wi.weight[:48]
    assert_close(rows[:, 16:32], source[:, 8:24])  # columns that are read once keep their weight
    assert_close(rows[:, 8:16] + rows[:, 40:48], source[:, :8])  # those read twice share it
    queries = large.model.layers[1].attn.Wqkv.weight[:48]
    assert torch.equal(queries[:16], queries[32:])  # heads 0 and 2 are the small model's head 0


def test_only_what_the_small_model_cannot_have_stays_fresh(make_model):
    small, large = make_model(num_layers=2), make_model(num_layers=4, **TWICE)
    weights = {name: 2 + torch.rand_like(weight) for name, weight in small.state_dict().items()}
    tile_weights(weights, small.config, large, fresh_share=0.0)
    assert source_layer(3, small.config, large.config) == 0  # and layer 0 has no norm before its attention
    fresh = [name for name, weight in large.named_parameters() if torch.equal(weight, torch.ones_like(weight))]
    assert fresh == ["model.layers.3.attn_norm.weight"]
    del weights["model.layers.1.mlp.Wi.weight"]
    with pytest.raises(KeyError, match=r"model.layers.1.mlp.Wi.weight"):
        tile_weights(weights, small.config, large)


def test_fresh_weights_part_the_copies(make_model, pack):
    small, large = make_model(), make_model(**TWICE)
    tiled(small, large, fresh_share=0.1)
    input_ids, cu_seqlens = pack(LENGTHS)
    positions = torch.arange(0, 200, 7)
    large(input_ids, cu_seqlens, positions, input_ids[positions])[0].backward()
    gradient = large.model.layers[1].mlp.Wo.weight.grad
    assert not torch.allclose(gradient[:16], gradient[48:], rtol=1e-3)


def test_layers_come_from_the_same_depth_and_kind():
    sizes = {"hidden_size": 64, "num_heads": 1, "intermediate_size": 64, "vocab_size": 64}
    small, large = ModelConfig(num_layers=22, **sizes), ModelConfig(num_layers=28, **sizes)  # ModernBERT base, large
    sources = [source_layer(index, small, large) for index in range(28)]
    for kind in ([0, *range(3, 28, 3)], [index for index in range(28) if index % 3]):
        assert [sources[index] for index in kind] == sorted(sources[index] for index in kind)
    assert (sources[0], sources[-1]) == (0, 21)
    assert set(sources) == set(range(22))
    assert all((index % 3 == 0) == (source % 3 == 0) for index, source in enumerate(sources))
    assert [source_layer(index, small, small) for index in range(22)] == list(range(22))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 256}, "init_from has vocabulary 128 and rmsnorm, the recipe 256 and rmsnorm"),
        ({"norm": "layernorm"}, "must be the same"),
        ({"num_heads": 4}, "heads of init_from are 16 wide, the recipe's 8; .* choose model.num_heads = 2"),
        ({"num_layers": 3}, "init_from has model.num_layers 4, more than the recipe's 3"),
    ],
)
def test_what_does_not_fit_is_refused(make_model, change, message):
    small = make_model().config
    with pytest.raises(ConfigError, match=message):
        check_tiling(small, dataclasses.replace(small, **change))
