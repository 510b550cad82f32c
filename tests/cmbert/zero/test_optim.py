"""Groups; AdamW and StableAdamW against naive references, whole and in the fragments that ZeRO makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cmbert.config.load import load_recipe
from cmbert.config.schema import OptimizerConfig
from cmbert.model.heads import MaskedLanguageModel
from cmbert.zero.groups import build_optimizer, parameter_groups
from cmbert.zero.optim import AdamW, Fragment, Layout, StepDecision

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


@pytest.mark.parametrize("eps", [1e-12, 1e-19, 1e-24])
def test_what_has_no_gradient_yet_stays_finite_however_small_eps_is(eps: float) -> None:
    parameters = [nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    clipped, plain = (
        AdamW([{"params": [p], "weight_decay": DECAY}], betas=BETAS, eps=eps, clip_updates=clip, lr=0.01)
        for p, clip in zip(parameters, (True, False), strict=True)
    )
    for _ in range(3):
        for parameter, optimizer in zip(parameters, (clipped, plain), strict=True):
            parameter.grad = torch.zeros(4, 3)
            parameter.grad[0] = 0.1  # a token that came; the others are rows of an embedding that did not
            optimizer.step()
    assert torch.equal(*parameters)  # steady gradients: nothing to clip


def test_a_flat_tensor_of_many_parameters_is_the_same() -> None:
    whole, flat = random_parameters(0), nn.Parameter(torch.cat([p.flatten() for p in random_parameters(0)]).detach())
    train(make(whole, clip_updates=True), lambda t: fill(whole, t), 12)
    optimizer = make([flat], clip_updates=True)
    sizes = [p.numel() for p in whole]
    fragments = [Fragment(i, sum(sizes[:i]), size, 0) for i, size in enumerate(sizes)]
    optimizer.layout = Layout.of({flat: fragments}, whole, flat.device, across_ranks=False)

    def fill_flat(step: int) -> None:
        flat.grad = torch.cat([g.flatten() for g in gradients(step)])

    train(optimizer, fill_flat, 12)
    torch.testing.assert_close(flat, torch.cat([p.flatten() for p in whole]), rtol=0, atol=0)


def decision(norm: float = 1.0, skipped: float = 0.0, device: str = "cpu") -> StepDecision:
    return StepDecision(torch.tensor(norm, device=device), torch.tensor(skipped, device=device))


@pytest.mark.parametrize("bad", [None, float("nan")])
@pytest.mark.parametrize("clip_updates", [True, False])
def test_a_skipped_step_moves_nothing_and_counts_nothing(clip_updates: bool, bad: float | None) -> None:
    parameters = random_parameters(0)
    optimizer = make(parameters, clip_updates=clip_updates)
    train(optimizer, lambda t: fill(parameters, t), 3)
    before = [p.detach().clone() for p in parameters]
    state = {key: [s[key].clone() for s in optimizer.state.values()] for key in ("step", "exp_avg", "exp_avg_sq")}
    fill(parameters, 4)
    if bad is not None:
        parameters[0].grad[0, 0] = bad
    optimizer.should_step = lambda: decision(skipped=1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    for key, values in state.items():
        assert all(torch.equal(s[key], value) for s, value in zip(optimizer.state.values(), values, strict=True))
    optimizer.should_step = decision
    fill(parameters, 4)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    unbroken = random_parameters(0)
    train(make(unbroken, clip_updates=clip_updates), lambda t: fill(unbroken, t), 4)
    assert all(torch.equal(a, b) for a, b in zip(parameters, unbroken, strict=True))


@pytest.mark.parametrize(("norm", "factor"), [(0.5, 1.0), (8.0, 4.0)])
def test_the_gradient_is_scaled_down_to_the_largest_norm(norm: float, factor: float) -> None:
    clipped, expected = random_parameters(0), random_parameters(0)
    ours, peer = make(clipped, clip_updates=False), make(expected, clip_updates=False)
    ours.max_norm, ours.should_step = 2.0, lambda: decision(norm)
    for t in (1, 2):
        fill(clipped, t)
        ours.step()
        fill(expected, t)
        for parameter in expected:
            parameter.grad /= factor
        peer.step()
    for a, b in zip(clipped, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class FusedCalls(TorchDispatchMode):
    """Writes down what torch's fused AdamW is given; it has no kernel for `meta`, nor has a CPU one for CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket is torch.ops.aten._fused_adamw_:
            self.calls.append((function, args, kwargs))
            return None
        return function(*args, **(kwargs or {}))


def check_contract(optimizer: AdamW, parameters: list[nn.Parameter]) -> None:
    """One step as a GPU would do it: what CUDA's kernel reads through a pointer is an fp32 of the device's memory."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.should_step = lambda: decision(device="meta")
    with FusedCalls() as fused:
        optimizer.step()
    assert len(fused.calls) == len(parameters)
    for function, args, kwargs in fused.calls:
        weights, _, _, _, _, steps = args[:6]
        for tensor in [*steps, kwargs["found_inf"]]:
            assert (tensor.device, tensor.dtype) == (weights[0].device, torch.float32)
        if optimizer.clip_updates:
            assert function is torch.ops.aten._fused_adamw_.tensor_lr
            assert (kwargs["lr"].device, kwargs["lr"].dtype) == (weights[0].device, torch.float32)


@pytest.mark.parametrize("clip_updates", [True, False])
def test_the_fused_kernel_gets_what_it_reads_on_a_gpu(clip_updates: bool) -> None:
    parameters = [nn.Parameter(p.detach().to("meta")) for p in random_parameters(0)]
    optimizer = make(parameters, clip_updates=clip_updates)
    for _ in range(2):
        check_contract(optimizer, parameters)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = torch.tensor(2.0)  # as torch.load(map_location="cpu") has it
    again = make(parameters, clip_updates=clip_updates)
    again.load_state_dict(saved)
    check_contract(again, parameters)


def test_counters_are_placed_whatever_a_file_made_of_them() -> None:
    parameters = [nn.Parameter(p.detach().to("meta")) for p in random_parameters(0)]
    optimizer = make(parameters, clip_updates=True)
    check_contract(optimizer, parameters)
    shared = torch.tensor(7, dtype=torch.int64)  # DeepSpeed's universal form: one counter for several tensors
    for state in optimizer.state.values():
        state["step"] = shared
    optimizer.place_counters()
    steps = [state["step"] for state in optimizer.state.values()]
    assert len({id(step) for step in steps}) == len(steps)
    check_contract(optimizer, parameters)
