"""The stack of layers: which RoPE base each kind turns by, and layers that are computed again."""

import pytest
import torch

from cmbert.config.schema import KernelConfig

LENGTHS = [5, 130, 64, 1, 90]


def outputs_of_layers(model, batch):
    found = []
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in model.model.layers]
    with torch.no_grad():
        model.model(*batch)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("base", "moved_from"), [("rope_base_global", 0), ("rope_base_local", 1)])
def test_each_kind_of_layer_turns_by_its_own_base(make_model, pack, base, moved_from):
    before, after = (outputs_of_layers(make_model(**{base: value}), pack(LENGTHS)) for value in (10_000.0, 160_000.0))
    unmoved = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert unmoved == [index < moved_from for index in range(4)]  # layer 0 is global, 1 and 2 local, 3 global


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_recomputed_layers_change_no_bit(make_model, pack, share):
    input_ids, cu_seqlens = pack(LENGTHS)
    positions = torch.arange(0, 280, 7)
    results = []
    for kernels in (KernelConfig(), KernelConfig(activation_checkpoint_fraction=share)):
        model = make_model(kernels).bfloat16()
        calls = []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, *_ = model(input_ids, cu_seqlens, positions, input_ids[positions])
        loss.backward()
        results.append((loss, *(parameter.grad for parameter in model.parameters())))
        assert len(calls) == 4 + round(4 * kernels.activation_checkpoint_fraction)  # once more for each
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
