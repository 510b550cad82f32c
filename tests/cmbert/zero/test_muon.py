"""Muon: torch's own on whole matrices, orthogonal updates, and what a skipped step moves."""

import pytest
import torch
from torch import nn

from cmbert.config.schema import ModelConfig, OptimizerConfig
from cmbert.model.cost import share_out
from cmbert.model.heads import MaskedLanguageModel, stacked_matrices
from cmbert.zero import muon
from cmbert.zero.groups import build_optimizer, parameter_groups
from cmbert.zero.muon import Muon, matrices_of, orthogonalise
from cmbert.zero.optim import StepDecision

STACKED = {(48, 16): 3, (40, 16): 2, (16, 20): 1, (16, 16): 1}  # shape -> matrices in it, as in a layer
MODEL = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=128, max_length=64)
OPTIONS = {"momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-6}


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in STACKED]


def make(parameters: list[nn.Parameter], **changes: float) -> Muon:
    stacked = dict(zip(parameters, STACKED.values(), strict=True))
    groups = [{"params": parameters, "weight_decay": 0.1, "orthogonal": True}]
    return Muon(groups, stacked=stacked, **{**OPTIONS, "lr": 0.02, **changes})


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 2)


def test_it_is_torchs_muon() -> None:
    mine = weights()
    optimizer = make(mine)
    theirs = [
        nn.Parameter(part.detach().clone())
        for weight, count in zip(weights(), STACKED.values(), strict=True)
        for part in weight.chunk(count)
    ]
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(12):
        set_gradients(mine, step)
        parts = [part for p, count in zip(mine, STACKED.values(), strict=True) for part in p.grad.chunk(count)]
        for parameter, gradient in zip(theirs, parts, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        peer.step()
    found = [part for p, count in zip(mine, STACKED.values(), strict=True) for part in p.chunk(count)]
    for own, expected in zip(found, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0.02 * 0.2 * 12 * 0.05)  # bf16 in another order
        assert (own - expected).abs().mean() < 1e-3 * (12 * 0.02 * 0.2)
    assert not torch.allclose(mine[0], weights()[0], atol=0.02)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 20, 64), (4, 64, 20), (1, 96, 96)])
def test_updates_are_orthogonal(shape: tuple[int, ...]) -> None:
    """Singular values within the band of the five steps, singular vectors those of the input."""
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(shape, generator=generator)
    found = orthogonalise(given.bfloat16()).float()
    values, before = torch.linalg.svdvals(found), torch.linalg.svdvals(given)
    reached = before / before.norm(dim=1, keepdim=True) > 0.003  # five steps do not raise what is next to nothing
    assert reached.float().mean() > 0.9
    assert values[reached].min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    polar = left @ right
    cosine = (found * polar).sum(dim=(1, 2)) / (found.norm(dim=(1, 2)) * polar.norm(dim=(1, 2)))
    assert cosine.min() > 0.95
    assert torch.equal(found, orthogonalise(given.bfloat16()).float())


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 8, 4).bfloat16()), torch.zeros(2, 8, 4).bfloat16())


def test_large_sets_are_made_orthogonal_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = weights(), weights()
    first, second = make(whole), make(parts)
    for step in range(3):
        set_gradients(whole, step)
        first.step()
    monkeypatch.setattr(muon, "NEWTON_SCHULZ_ELEMENTS", 300)
    for step in range(3):
        set_gradients(parts, step)
        second.step()
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_a_skipped_step_moves_nothing(value: float) -> None:
    parameters = weights()
    optimizer = make(parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    before = [(p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for p in parameters]
    optimizer.should_step = lambda: StepDecision(torch.tensor(value), torch.tensor(1.0))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    for parameter, (weight, state) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, weight)
        assert all(torch.equal(optimizer.state[parameter][key], state[key]) for key in state)


def test_a_step_that_is_taken_moves_as_without_a_question() -> None:
    asked, plain = weights(), weights()
    first, second = make(asked), make(plain)
    first.should_step = lambda: StepDecision(torch.tensor(1.0), torch.tensor(0.0))
    for step in range(3):
        set_gradients(asked, step)
        set_gradients(plain, step)
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(asked, plain, strict=True))


def test_the_matrices_of_a_model() -> None:
    model = MaskedLanguageModel(MODEL)
    names = {parameter: name for name, parameter in model.named_parameters()}
    stacked = {names[parameter]: count for parameter, count in stacked_matrices(model).items()}  # type: ignore[index]
    expected = {"head.dense.weight": 1}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        expected |= {prefix + "attn.Wqkv.weight": 3, prefix + "attn.Wo.weight": 1}
        expected |= {prefix + "mlp.Wi.weight": 2, prefix + "mlp.Wo.weight": 1}
    assert stacked == expected
    config = OptimizerConfig(kind="muon", weight_decay=0.1)
    matrices, decayed, kept = parameter_groups(model, config)
    assert {names[p] for p in matrices["params"]} == set(expected)
    assert {names[p] for p in decayed["params"]} == {"model.embeddings.tok_embeddings.weight"}
    assert sorted(map(id, matrices["params"] + decayed["params"] + kept["params"])) == sorted(map(id, names))
    found = build_optimizer(model, config)
    assert isinstance(found, Muon)
    assert [group["orthogonal"] for group in found.param_groups] == [True, False, False]


def test_momentum_alone_is_kept() -> None:
    parameters = weights()
    optimizer = make(parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    for parameter in parameters:
        state = optimizer.state[parameter]
        assert state["exp_avg"].untyped_storage().nbytes() == 4 * parameter.numel()
        assert state["exp_avg_sq"].untyped_storage().nbytes() == 4


def test_owners_have_alike_much_to_do() -> None:
    matrices = [m for number in range(28) for m in matrices_of(number, (3072, 1024), 3)]
    matrices += [m for number in range(28) for m in matrices_of(28 + number, (5248, 1024), 2)]
    for num_ranks in (1, 2, 3, 8, 64):
        owners = share_out([m.flops for m in matrices], num_ranks)
        loads = [sum(m.flops for m, o in zip(matrices, owners, strict=True) if o == rank) for rank in range(num_ranks)]
        assert sum(loads) == sum(m.flops for m in matrices)
        assert max(loads) - min(loads) <= max(m.flops for m in matrices)
    assert (
        max(share_out([m.flops for m in matrices], 1000)) == len(matrices) - 1
    )  # more ranks than matrices: one each, the rest none
