"""Groups; AdamW and StableAdamW against naive references, whole and in the pieces that ZeRO makes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cmbert.config.load import load_recipe
from cmbert.config.schema import OptimizerConfig
from cmbert.model.heads import MaskedLanguageModel
from cmbert.train.optim import AdamW, Layout, Segment, build_optimizer, parameter_groups

BETAS, EPS, DECAY = (0.9, 0.95), 1e-6, 0.1
SHAPES = ((7, 5), (5,), (40, 3), (1,))


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_groups(recipe_file: Path, decay_embeddings: bool) -> None:
    model = MaskedLanguageModel(load_recipe(recipe_file).model)
    config = OptimizerConfig(weight_decay=0.1, decay_embeddings=decay_embeddings)
    decayed, plain = parameter_groups(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    embedding = "model.embeddings.tok_embeddings.weight"
    undecayed = {names[id(p)] for p in plain["params"]} - {embedding}
    assert all(name.endswith(("norm.weight", "bias")) for name in undecayed)
    assert (embedding in {names[id(p)] for p in decayed["params"]}) == decay_embeddings
    assert sorted(map(id, decayed["params"] + plain["params"])) == sorted(names)  # none lost, none twice
    optimizer = build_optimizer(model, config)
    assert optimizer.clip_updates
    assert optimizer.defaults["betas"] == (config.beta1, config.beta2)


def random_parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    """Gradients of all sizes; a step ten times as large now and then, whose update is then clipped."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = 10.0 if step % 4 == 3 else 0.1
    return [torch.randn(shape, generator=generator) * size * 10.0**-index for index, shape in enumerate(SHAPES)]


def naive_stable_adamw(parameters: list[torch.Tensor], lr: float, num_steps: int) -> list[float]:
    """Algorithm 2 of arXiv 2304.13013 in float64, as it is written; return the largest RMS of each step."""
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    largest = []
    for t in range(1, num_steps + 1):
        beta1, beta2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in BETAS)
        found = []
        for p, m, v, g in zip(parameters, first, second, map(torch.Tensor.double, gradients(t)), strict=True):
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * g**2)
            rms = (g**2 / v.clamp_min(EPS**2)).mean().sqrt().item()
            rate = lr / max(1.0, rms)
            p.sub_(rate * DECAY * p + rate * m / (v.sqrt() + EPS))
            found.append(rms)
        largest.append(max(found))
    return largest


def train(optimizer: torch.optim.Optimizer, set_gradients: Callable[[int], None], num_steps: int) -> None:
    for t in range(1, num_steps + 1):
        set_gradients(t)
        optimizer.step()


def make(parameters: list[torch.Tensor], *, clip_updates: bool, lr: float = 0.01) -> AdamW:
    groups = [{"params": parameters, "weight_decay": DECAY}]
    return AdamW(groups, betas=BETAS, eps=EPS, clip_updates=clip_updates, lr=lr)


def fill(parameters: list[nn.Parameter], step: int) -> None:
    for parameter, gradient in zip(parameters, gradients(step), strict=True):
        parameter.grad = gradient


def test_stable_adamw_is_the_papers() -> None:
    expected = [p.detach().double() for p in random_parameters(0)]
    rms = naive_stable_adamw(expected, 0.01, 20)
    assert max(rms) > 2  # so that something is clipped
    parameters = random_parameters(0)
    train(make(parameters, clip_updates=True), lambda t: fill(parameters, t), 20)
    for parameter, reference in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.double(), reference, rtol=1e-6, atol=1e-6)


def test_without_clipping_it_is_torchs_adamw_bit_for_bit() -> None:
    mine, theirs = random_parameters(0), random_parameters(0)
    peer = torch.optim.AdamW(theirs, lr=0.01, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
    train(make(mine, clip_updates=False), lambda t: fill(mine, t), 20)
    train(peer, lambda t: fill(theirs, t), 20)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_stable_adamw_agrees_with_optimi() -> None:
    optimi = pytest.importorskip("optimi")
    mine, theirs = random_parameters(0), random_parameters(0)
    peer = optimi.StableAdamW(theirs, lr=0.01, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False)
    train(make(mine, clip_updates=True), lambda t: fill(mine, t), 20)
    train(peer, lambda t: fill(theirs, t), 20)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_flat_tensor_of_many_parameters_is_the_same() -> None:
    whole, flat = random_parameters(0), nn.Parameter(torch.cat([p.flatten() for p in random_parameters(0)]).detach())
    train(make(whole, clip_updates=True), lambda t: fill(whole, t), 12)
    optimizer = make([flat], clip_updates=True)
    sizes = [p.numel() for p in whole]
    segments = [Segment(i, sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    optimizer.layout = Layout({flat: segments}, torch.tensor(sizes, dtype=torch.float64), across_ranks=False)

    def fill_flat(step: int) -> None:
        flat.grad = torch.cat([g.flatten() for g in gradients(step)])

    train(optimizer, fill_flat, 12)
    torch.testing.assert_close(flat, torch.cat([p.flatten() for p in whole]), rtol=0, atol=0)


@pytest.mark.parametrize("clip_updates", [True, False])
def test_a_step_not_admitted_moves_nothing_and_counts_nothing(clip_updates: bool) -> None:
    parameters = random_parameters(0)
    optimizer = make(parameters, clip_updates=clip_updates)
    train(optimizer, lambda t: fill(parameters, t), 3)
    before = [p.detach().clone() for p in parameters]
    state = {key: [s[key].clone() for s in optimizer.state.values()] for key in ("step", "exp_avg", "exp_avg_sq")}
    fill(parameters, 4)
    optimizer.moved, optimizer.admit = False, lambda: False
    optimizer.step()
    assert not optimizer.moved
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    for key, values in state.items():
        assert all(torch.equal(s[key], value) for s, value in zip(optimizer.state.values(), values, strict=True))
    optimizer.admit = lambda: True
    optimizer.step()
    assert optimizer.moved
    assert not any(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
