import math

import torch

from cmbert.model.init import initialise


def test_statistics_follow_modernbert(make_model):
    model = make_model(hidden_size=128, num_heads=4, intermediate_size=192, vocab_size=512, num_layers=8, init_std=0.02)
    # Cutting a normal at 2 sigma leaves this share of its standard deviation.
    kept = math.sqrt(1 - 4 * math.exp(-2) / (math.sqrt(2 * math.pi) * math.erf(math.sqrt(2))))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (0.0 if name == "decoder.bias" else 1.0)).all(), name
            continue
        is_scaled = name.endswith("Wo.weight") or name == "head.dense.weight"
        std = 0.02 / math.sqrt(16) if is_scaled else 0.02
        assert parameter.abs().max() <= 2 * std, name
        assert abs(parameter.std().item() / (kept * std) - 1) < 0.03, name
        assert abs(parameter.mean().item()) < 0.05 * std, name


def test_same_seed_same_weights_whatever_the_global_generator_and_dtype(make_model):
    model = make_model()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(99)
    torch.rand(5)
    initialise(model.bfloat16(), seed=1)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name].bfloat16()), name


def test_seeds_and_parameters_differ(make_model):
    model = make_model()
    first = model.model.layers[1].attn.Wqkv.weight.clone()
    assert not torch.equal(first, model.model.layers[2].attn.Wqkv.weight)
    initialise(model, seed=2)
    assert not torch.equal(first, model.model.layers[1].attn.Wqkv.weight)


def test_a_weight_does_not_depend_on_the_vocabulary(make_model):
    small, large = make_model(vocab_size=64), make_model(vocab_size=256)
    assert torch.equal(small.model.layers[0].mlp.Wi.weight, large.model.layers[0].mlp.Wi.weight)
