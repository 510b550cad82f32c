"""Every number of a recipe, at the edges of what makes sense and past them: none may be what TOML calls nan or inf."""

import copy
import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from cmbert.config.load import build_recipe, load_recipe
from cmbert.config.schema import KernelConfig, ModelConfig, OptimizerConfig, Recipe
from cmbert.errors import ConfigError
from cmbert.model.layers import make_norm
from cmbert.zero.groups import build_optimizer

BASE: dict[str, Any] = {
    "run_directory": "run",
    "model": {
        "num_layers": 3,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 384,
    },
    "data": {
        "tokenizer": "tokenizer",
        "sources": [{"path": "one", "weight": 1.0}, {"path": "two", "weight": 1.0}],
        "changes": [{"at_tokens": 512, "weights": [1.0, 1.0]}],
        "context_tokens": 64,
    },
    "schedule": {"lr_max": 1e-3, "lr_min": 1e-4},
    "train": {"total_tokens": 10**6, "rows_per_step": 8, "micro_batch_rows": 2},
}
RAMP = {"train.ramp_start_rows": 2, "train.ramp_increment_rows": 2, "train.ramp_tokens": 1000}
DECAY = {"schedule.kind": "warmup_stable_decay", "schedule.decay_tokens": 10}
COUNT, SIZE, TINY = 2**53, 2**20, math.ulp(0.0)
# key: smallest, largest, what else the two need; a step outside either is refused.
EDGES: dict[str, tuple[float, float, dict[str, Any]]] = {
    "model.num_layers": (1, 10_000, {}),
    "model.hidden_size": (2, SIZE, {"model.num_heads": 1}),
    "model.num_heads": (1, 32, {}),
    "model.intermediate_size": (1, SIZE, {}),
    "model.vocab_size": (64, 2**24, {}),
    "model.norm_eps": (1e-15, 1.0, {}),
    "model.global_every": (1, 10_000, {}),
    "model.local_window": (2, 2**24, {}),
    "model.rope_base_global": (math.nextafter(1.0, 2), 1e12, {}),
    "model.rope_base_local": (math.nextafter(1.0, 2), 1e12, {}),
    "model.max_length": (8, 2**24, {"data.context_tokens": 8}),
    "model.init_std": (TINY, 1.0, {}),
    "data.sources.weight": (TINY, 1e15, {}),
    "data.sources.max_epochs": (TINY, 1e12, {}),
    "data.changes.at_tokens": (1, COUNT, {}),
    "data.changes.weights": (0.0, 1e15, {}),
    "data.context_tokens": (8, 8192, {}),
    "data.shuffle_block_rows": (1, SIZE, {}),
    "data.shuffle_blocks": (1, SIZE, {}),
    "data.num_workers": (0, 1024, {}),
    "mask.start_rate": (TINY, math.nextafter(1.0, 0), {}),
    "mask.peak_rate": (TINY, math.nextafter(1.0, 0), {}),
    "mask.end_rate": (TINY, math.nextafter(1.0, 0), {}),
    "mask.warmup_tokens": (0, 10**6 - 1, {}),
    "mask.mask_prob": (0.0, 1.0, {"mask.random_prob": 0.0}),
    "mask.random_prob": (0.0, 1.0, {"mask.mask_prob": 0.0}),
    "optimizer.beta1": (0.0, 0.999999, {}),
    "optimizer.momentum": (0.0, 0.999999, {"optimizer.kind": "muon"}),
    "optimizer.beta2": (0.0, 0.999999, {}),
    "optimizer.eps": (1e-15, 1.0, {}),
    "optimizer.weight_decay": (0.0, 100.0, {}),
    "optimizer.gradient_clip": (0.0, 1e9, {}),
    "schedule.lr_max": (TINY, 1.0, {"schedule.lr_min": 0.0}),
    "schedule.lr_min": (0.0, 1e-3, {}),
    "schedule.warmup_tokens": (0, 10**6 - 1, {}),
    "schedule.decay_tokens": (1, 10**6, DECAY),
    "schedule.num_cycles": (1, 10_000, {"schedule.gamma": 1.0}),
    "schedule.gamma": (0.0, 1.0, {}),
    "train.total_tokens": (1, COUNT, {}),
    "train.rows_per_step": (1, SIZE, {}),
    "train.micro_batch_rows": (1, SIZE, {}),
    "train.ramp_start_rows": (2, 6, RAMP),
    "train.ramp_increment_rows": (1, 6, RAMP),
    "train.ramp_tokens": (1, 10**6 - 1, RAMP),
    "train.seed": (0, 2**63 - 1, {}),
    "train.checkpoint_every_steps": (1, COUNT, {}),
    "train.keep_checkpoints": (1, COUNT, {}),
    "train.keep_every_tokens": (0, COUNT, {}),
    "train.ephemeral_every_steps": (0, COUNT, {}),
    "train.max_failed_saves": (0, COUNT, {}),
    "train.log_every_steps": (1, COUNT, {}),
    "evaluation.every_steps": (1, COUNT, {}),
    "evaluation.max_rows": (1, COUNT, {}),
    "kernels.activation_checkpoint_fraction": (0.0, 1.0, {}),
    "guards.max_skipped_steps": (0, COUNT, {}),
    "guards.spike_score": (TINY, 1e9, {}),
    "guards.spike_window_steps": (16, SIZE, {}),
    "guards.rewind_steps": (1, COUNT, {}),
    "guards.max_rewinds": (0, COUNT, {}),
    "guards.hang_seconds": (0.0, 1e7, {}),
}
STEPS = {"model.vocab_size": 64, "model.local_window": 2, "model.num_heads": 32, "train.ramp_start_rows": 2}


def numeric_keys(cls: Any, prefix: str = "") -> dict[str, type]:
    """Return the type of every key of the schema that holds numbers, those of lists of tables and numbers, too."""
    keys: dict[str, type] = {}
    for name, hint in typing.get_type_hints(cls).items():
        inner = [item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item)]
        if inner:
            keys |= numeric_keys(inner[0], f"{prefix}{name}.")
        elif kinds := [kind for kind in (int, float) if kind in (hint, *typing.get_args(hint))]:
            keys[prefix + name] = kinds[0]
    return keys


KEYS = numeric_keys(Recipe)


def recipe_with(key: str, value: Any, others: dict[str, Any]) -> Recipe:
    table = copy.deepcopy(BASE)
    for name, one in {**others, key: value}.items():
        *sections, last = name.split(".")
        place: Any = table
        for section in sections:
            place = place.setdefault(section, {})
            place = place[0] if isinstance(place, list) else place
        place[last] = [one, 1.0] if last == "weights" else one
    return build_recipe(table, "recipe.toml")


def test_the_table_has_every_numeric_key() -> None:
    assert set(EDGES) == set(KEYS)


@pytest.mark.parametrize("key", EDGES)
def test_the_edges_are_taken_and_nothing_past_them(key: str) -> None:
    smallest, largest, others = EDGES[key]
    for value in (smallest, largest):
        recipe_with(key, value, others)
    if KEYS[key] is float:
        past = [math.nextafter(smallest, -math.inf), math.nextafter(largest, math.inf), -1.0, 1e300]
    else:
        past = [smallest - STEPS.get(key, 1), largest + STEPS.get(key, 1), -STEPS.get(key, 1), 10**30]
    if key == "data.sources.weight":
        past.remove(0.0)  # refused only since the other source has a weight
        with pytest.raises(ConfigError, match="give every source a weight or none"):
            recipe_with(key, 0.0, others)
    for value in past:
        with pytest.raises(ConfigError, match=rf"^recipe\.toml: {key.partition('.')[0]}\."):
            recipe_with(key, value, others)


@pytest.mark.parametrize("key", EDGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_nan_or_infinite(key: str, value: float) -> None:
    """Whatever the other keys are: the name is that of the key."""
    *sections, last = key.split(".")
    with pytest.raises(ConfigError, match=rf"^recipe\.toml: {sections[0]}\.?.*{last}.*(nan|inf)"):
        recipe_with(key, value, EDGES[key][2])


def test_numbers_without_end_are_mistakes_too(recipe_file: Path) -> None:
    """TOML's integers have any length; Python reads 4,300 digits of them and makes a float of 308."""
    for digits in (400, 5_000):
        for override in (f"schedule.lr_max=1{'0' * digits}", f"train.seed=1{'0' * digits}"):
            with pytest.raises(ConfigError):
                load_recipe(recipe_file, [override])
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text.replace("lr_max = 1e-3", f"lr_max = 1{'0' * 5_000}"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML"):
        load_recipe(recipe_file)


def test_weight_decay_does_not_turn_weights_around() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.weight_decay: 100 x schedule.lr_max 0.02"):
        recipe_with("optimizer.weight_decay", 100.0, {"schedule.lr_max": 0.02})


@pytest.mark.parametrize("kind", ["adamw", "stable_adamw"])
@pytest.mark.parametrize("beta1", EDGES["optimizer.beta1"][:2])
@pytest.mark.parametrize("beta2", EDGES["optimizer.beta2"][:2])
@pytest.mark.parametrize("eps", EDGES["optimizer.eps"][:2])
def test_the_optimizer_makes_numbers_of_its_edges(kind: Any, beta1: float, beta2: float, eps: float) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, beta1=beta1, beta2=beta2, eps=eps))
    for scale in (0.0, 1e-30, 1.0, 0.0, 1e6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        optimizer.step()
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_makes_numbers_of_its_edges(kind: Any, dtype: torch.dtype) -> None:
    for eps in EDGES["model.norm_eps"][:2]:
        config = ModelConfig(**{**BASE["model"], "norm": kind, "norm_eps": eps})
        norm = make_norm(config, KernelConfig()).to(dtype)
        values = torch.tensor([[0.0] * 64, [1e-30] * 64, [3e4] * 64], dtype=dtype, requires_grad=True)
        out = norm(values)
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert values.grad is not None
        assert torch.isfinite(values.grad).all()
