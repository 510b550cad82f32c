import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.model.layers import EncoderLayer, GatedMLP, layer_parts, make_norm

SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "vocab_size": 64}


def test_norms_match_their_formulas_and_have_no_bias():
    x = torch.randn(5, 32) * 3 + 1
    rms = make_norm(ModelConfig(**SIZES, norm="rmsnorm", norm_eps=1e-3), KernelConfig())
    layer = make_norm(ModelConfig(**SIZES, norm="layernorm", norm_eps=1e-3), KernelConfig())
    assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    centred = x - x.mean(-1, keepdim=True)
    assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    assert [name for norm in (rms, layer) for name, _ in norm.named_parameters()] == ["weight", "weight"]


def test_mlp_gates_with_the_second_half():
    mlp = GatedMLP(ModelConfig(**SIZES))
    x = torch.randn(7, 32)
    first, second = mlp.Wi.weight[:48], mlp.Wi.weight[48:]
    assert_close(mlp(x), (F.gelu(x @ first.T) * (x @ second.T)) @ mlp.Wo.weight.T)
    assert torch.equal(mlp(x), mlp(x))


def test_layers_alternate_and_only_the_first_skips_its_norm():
    layers = [EncoderLayer(ModelConfig(**SIZES), index, KernelConfig(), layer_parts(False)) for index in range(7)]
    assert [layer.is_global for layer in layers] == [True, False, False, True, False, False, True]
    assert [isinstance(layer.attn_norm, torch.nn.Identity) for layer in layers] == [True] + [False] * 6
