"""The model as a GPU runs it, with torch's own fused attention, on `meta`: devices, launches, compilations.

What is computed is tested elsewhere; here nothing is. A kernel that fails on a GPU alone is not seen, either.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func

from cmbert.accel import ATTENTION_KERNELS, AttentionBackend
from cmbert.config.load import load_recipe
from cmbert.config.schema import KernelConfig, ModelConfig
from cmbert.data.batches import PackedBatch
from cmbert.model import encoder
from cmbert.model.heads import MaskedLanguageModel
from tests.cmbert.devices import META, Dispatched, is_launch
from tests.cmbert.fused import keeps_no_scores

RECIPES = Path(__file__).parents[3] / "recipes"
SHAPES = [
    pytest.param(name, norm, id=f"{name}-{norm}")
    for name, norm in [("quickstart", "rmsnorm"), ("base", "rmsnorm"), ("large", "rmsnorm"), ("large", "layernorm")]
]
ROWS, CONTEXT = 2, 1024
STEPS = [(9, 400), (12, 403), (2, 390), (300, 512), (57, 77)]  # segments, masked positions

EAGER_LAUNCHES = {"rmsnorm": (35, 63), "layernorm": (21, 31)}
"""Forward and backward, counted. On a GPU RMSNorm is one operator, as LayerNorm is here; on `meta` it is its formula.
With one each: 4 products, attention, 2 norms, 2 sums, 2 of GeGLU, and 10 that turn queries and keys."""

GRAPH_LAUNCHES = {"rmsnorm": (35, 31), "layernorm": (21, 31)}
"""The same of a compiled layer's graphs, before anything is fused: what is not a product or attention is fused."""


def force(name, monkeypatch):
    backend = AttentionBackend(name, ATTENTION_KERNELS[name].call)
    monkeypatch.setattr(encoder, "attention_backend", lambda device, dtype, requested: backend)


@pytest.fixture(autouse=True)
def torch_varlen(monkeypatch):
    force("torch_varlen", monkeypatch)


@pytest.fixture
def graphs(monkeypatch):
    """Compile with a backend that keeps the graphs, forward and backward, and runs them as they are."""
    found = []

    def keep(module, inputs):
        found.append(module.graph)
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_autograd(fw_compiler=keep)))
    monkeypatch.setattr("shutil.which", lambda name: name)  # no C++ compiler is needed
    yield found
    torch._dynamo.reset()


def shape(name, norm, **overrides) -> ModelConfig:
    return dataclasses.replace(load_recipe(RECIPES / name / "stage1.toml").model, norm=norm, **overrides)


def build(config, device=META, **kernels):
    with torch.device(device):
        return MaskedLanguageModel(config, KernelConfig(**kernels)).bfloat16()


def batch(num_segments, num_masked, rows=ROWS) -> PackedBatch:
    tokens, masked = (torch.zeros(size, dtype=torch.int64, device=META) for size in (rows * CONTEXT, num_masked))
    bounds = torch.zeros(num_segments + 1, dtype=torch.int32, device=META)
    return PackedBatch(tokens, bounds, masked, masked, tokens.int(), CONTEXT)


def targets(graph):
    return [node.target for node in graph.nodes]


def train(model, micro_batch):
    loss, correct, losses = model(*micro_batch)
    loss.backward()
    return loss, correct, losses


@pytest.mark.parametrize(("name", "norm"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_micro_batch_never_meets_the_host(name, norm, share):
    model = build(shape(name, norm), activation_checkpoint_fraction=share)
    micro_batch = batch(*STEPS[0])
    with Dispatched() as seen:
        made = train(model, micro_batch)
    assert seen.crossings == []
    assert seen.devices == {META}
    assert {tensor.device for tensor in (*made, *(weight.grad for weight in model.parameters()))} == {META}
    assert seen.launches["torch_attn._varlen_attn_backward.default"] == model.config.num_layers


def test_what_is_not_handed_over_is_seen():
    model = build(shape("quickstart", "rmsnorm"))
    ids, bounds, masked, targets, positions, longest = batch(*STEPS[0])
    with Dispatched() as seen:
        model(ids, torch.tensor([0, len(ids)]), masked, targets)
    assert seen.crossings == ["aten._to_copy.default"] * 2  # bounds and positions
    assert seen.devices == {META, torch.device("cpu")}
    for missing in ((None, longest), (positions, None)):
        with pytest.raises(NotImplementedError, match="out of meta tensor"):
            model(ids, bounds, masked, targets, *missing)  # reads the bounds back


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_launches_of_a_layer_in_eager_code(norm):
    found = []
    for num_layers in (4, 7):  # three layers apart: one global, two local
        model, micro_batch = build(shape("large", norm, num_layers=num_layers)), batch(*STEPS[0])
        with Dispatched() as forward:
            loss, *_ = model(*micro_batch)
        with Dispatched() as backward:
            loss.backward()
        found.append([forward.launches.total(), backward.launches.total()])
    for before, after, most in zip(*found, EAGER_LAUNCHES[norm], strict=True):
        assert 0 < (after - before) / 3 <= most


@pytest.mark.parametrize(("name", "norm"), SHAPES)
def test_launches_of_a_layer_in_compiled_code(graphs, name, norm):
    model = build(shape(name, norm), compile=True)
    kinds = {(index > 0, layer.is_global) for index, layer in enumerate(model.model.layers)}
    train(model, batch(*STEPS[0]))
    made = [node.meta["val"] for graph in graphs for node in graph.nodes if "val" in node.meta]
    assert {value.device for value in made if isinstance(value, torch.Tensor)} == {META}
    for direction, most in zip(("", "_backward"), GRAPH_LAUNCHES[norm], strict=True):
        operator = f"torch_attn._varlen_attn{direction}.default"
        sizes = [sum(map(is_launch, targets(graph))) for graph in graphs if operator in map(str, targets(graph))]
        assert len(sizes) == len(kinds)  # attention is in the graph of each
        assert max(sizes) <= most


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_compilation_for_the_run(graphs, share):
    model = build(shape("large", "rmsnorm", num_layers=7), compile=True, activation_checkpoint_fraction=share)
    train(model, batch(*STEPS[0]))
    kinds = 4  # the first layer, which has no norm; local and global layers; the loss
    assert counters["stats"]["unique_graphs"] == kinds
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_segments, num_masked in STEPS[1:]:
            train(model, batch(num_segments, num_masked))
        assert counters["stats"]["unique_graphs"] == kinds
        with pytest.raises(torch._dynamo.exc.RecompileError):
            train(model, batch(*STEPS[0], rows=ROWS + 1))  # so the count can fail
    with torch.no_grad():  # the held-out score, between two steps
        for num_segments, num_masked in STEPS:
            model(*batch(num_segments, num_masked))
    train(model, batch(*STEPS[0]))
    assert counters["stats"]["unique_graphs"] == 2 * kinds


@pytest.mark.parametrize(
    ("name", "operator"),
    [("flash_attn", "cmbert_tests.keeps_no_scores.default"), ("flash_attn_3", "torch_attn._varlen_attn.default")],
)
def test_flash_attention_is_taken_in_by_a_compiled_layer(graphs, monkeypatch, name, operator):
    """Version 2 registers its kernels with torch, as this stand-in does; version 3 runs through torch's operator."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = lambda query, key, value, *_, **__: keeps_no_scores(query, key, value)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    force(name, monkeypatch)
    train(build(shape("quickstart", "rmsnorm"), compile=True), batch(*STEPS[0]))
    assert len([graph for graph in graphs if operator in map(str, targets(graph))]) == 2
