"""Start a model from a smaller one: its weights repeated from the middle outwards, what it computes kept.

Centre tiling is ModernBERT-large's start from ModernBERT-base (arXiv 2412.13663, section 2.2.2). Ours: columns that
read repeated values share their weight, as in Net2Net (arXiv 1511.05641), so that a model of twice the width and heads
computes what the small one does; and a little of the fresh weights is added, or copies would stay copies for ever.

Shapes: D hidden width, H heads, K head width, I intermediate width, V vocabulary; capitals of the large model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmbert.config.schema import ModelConfig
from cmbert.errors import ConfigError
from cmbert.model.heads import MaskedLanguageModel

FRESH_SHARE = 0.1
"""Of the fresh weight added to a tiled one."""

LAYERS = "model.layers."


@dataclass(frozen=True)
class Axis:
    """Where each place of a large axis comes from, and how often its source is repeated."""

    source: torch.Tensor  # (large,) int64
    times: torch.Tensor  # (large,) fp32


def check_tiling(small: ModelConfig, large: ModelConfig) -> None:
    """Raise ConfigError unless a model of `small` can start one of `large`."""
    if (small.vocab_size, small.norm) != (large.vocab_size, large.norm):
        raise ConfigError(
            f"train.init_tiling: init_from has vocabulary {small.vocab_size} and {small.norm}, the recipe "
            f"{large.vocab_size} and {large.norm}; they must be the same"
        )
    small_width, large_width = (config.hidden_size // config.num_heads for config in (small, large))
    if small_width != large_width:
        raise ConfigError(
            f"train.init_tiling: heads of init_from are {small_width} wide, the recipe's {large_width}; whole heads "
            f"are repeated, so choose model.num_heads = {large.hidden_size // small_width}"
        )
    for key in ("num_layers", "hidden_size", "intermediate_size"):
        if getattr(small, key) > getattr(large, key):
            raise ConfigError(
                f"train.init_tiling: init_from has model.{key} {getattr(small, key)}, more than the recipe's "
                f"{getattr(large, key)}; start from a smaller model"
            )


@torch.no_grad()
def tile_weights(
    weights: Mapping[str, torch.Tensor],
    small: ModelConfig,
    model: MaskedLanguageModel,
    fresh_share: float = FRESH_SHARE,
) -> None:
    """Fill `model`, freshly initialised, from `weights` of a model of configuration `small`.

    Each parameter becomes the tiled one plus `fresh_share` of what it was; norms and biases the tiled one alone. Raises
    ConfigError as `check_tiling` does.
    """
    large = model.config
    check_tiling(small, large)
    for name, parameter in model.named_parameters():
        source_name = _source_name(name, small, large)
        if source_name == f"{LAYERS}0.attn_norm.weight":  # the first layer has no norm before its attention
            continue
        tiled = _tile(name, weights[source_name].float(), small, large)
        fresh = fresh_share * parameter.float() if parameter.ndim > 1 else 0.0
        parameter.copy_(tiled + fresh)


def source_layer(index: int, small: ModelConfig, large: ModelConfig) -> int:
    """Return the layer of `small` at the same depth as layer `index` of `large`, the nearest of its kind."""
    depth = index * (small.num_layers - 1) / max(large.num_layers - 1, 1)
    is_global = index % large.global_every == 0
    alike = [i for i in range(small.num_layers) if (i % small.global_every == 0) == is_global]
    return min(alike or range(small.num_layers), key=lambda i: (abs(i - depth), i))


def _source_name(name: str, small: ModelConfig, large: ModelConfig) -> str:
    if not name.startswith(LAYERS):
        return name
    index, _, rest = name.removeprefix(LAYERS).partition(".")
    return f"{LAYERS}{source_layer(int(index), small, large)}.{rest}"


def _axis(small: int, large: int, unit: int = 1) -> Axis:
    """Repeat `small` units from the middle outwards over `large`; a unit is `unit` places, a whole head say."""
    offset = (large - small) // 2
    source = (torch.arange(large) - offset) % small
    times = torch.bincount(source, minlength=small)[source].float()
    places = source.repeat_interleave(unit) * unit + torch.arange(unit).repeat(large)
    return Axis(places, times.repeat_interleave(unit))


def _tile(name: str, weight: torch.Tensor, small: ModelConfig, large: ModelConfig) -> torch.Tensor:
    """Return `weight` of the small model in the shape of the large one."""
    hidden = _axis(small.hidden_size, large.hidden_size)
    heads = _axis(small.num_heads, large.num_heads, large.hidden_size // large.num_heads)
    intermediate = _axis(small.intermediate_size, large.intermediate_size)
    if name == "decoder.bias":
        return weight
    if name == "head.norm.weight":
        return weight[hidden.source] / hidden.times  # the decoder reads it by embeddings, which cannot share
    if weight.ndim == 1:
        return weight[hidden.source]
    if name == "model.embeddings.tok_embeddings.weight":
        return weight[:, hidden.source]
    if name.endswith("attn.Wqkv.weight"):
        return _rows_and_columns(weight, heads, hidden, parts=3)
    if name.endswith("mlp.Wi.weight"):
        return _rows_and_columns(weight, intermediate, hidden, parts=2)
    reads = heads if name.endswith("attn.Wo.weight") else intermediate if name.endswith("mlp.Wo.weight") else hidden
    return _rows_and_columns(weight, hidden, reads, parts=1)


def _rows_and_columns(weight: torch.Tensor, writes: Axis, reads: Axis, parts: int) -> torch.Tensor:
    """Repeat rows within each of `parts` stacked matrices; columns share their weight among the repeated values."""
    tiled = torch.cat([part[writes.source] for part in weight.chunk(parts)])
    return tiled[:, reads.source] / reads.times
