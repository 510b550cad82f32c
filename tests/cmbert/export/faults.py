"""Faults of an export: of another value in config.json, of other weights, of a program that handles padding wrongly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def in_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return the fault of another value in config.json."""

    def fault(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return fault


def in_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Return the fault of other weights."""

    def fault(folder: Path) -> None:
        weights = {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return fault


def base(kind: str, value: float) -> Callable[[Path], None]:
    return in_config(lambda values: values["rope_parameters"][kind].update(rope_theta=value))


def window(tokens: int) -> Callable[[Path], None]:
    return in_config(lambda values: values.update(local_attention=tokens))


def kind_of_layer(layer: int, kind: str) -> Callable[[Path], None]:
    return in_config(lambda values: values["layer_types"].__setitem__(layer, kind))


def layers_swapped(one: int, other: int) -> Callable[[Path], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        first, second = f"model.layers.{one}.", f"model.layers.{other}."
        for name in [name for name in weights if name.startswith(first)]:
            twin = second + name.removeprefix(first)
            weights[name], weights[twin] = weights[twin], weights[name]

    return in_weights(change)


def parts_swapped(name: str, num_parts: int) -> Callable[[Path], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        first, second, *rest = weights[name].chunk(num_parts)
        weights[name] = torch.cat([second, first, *rest])

    return in_weights(change)


def transposed(name: str) -> Callable[[Path], None]:
    return in_weights(lambda weights: weights.update({name: weights[name].T.contiguous()}))


def filled(name: str, value: float) -> Callable[[Path], None]:
    return in_weights(lambda weights: weights[name].fill_(value))


FAULTS = {
    "another base, global": base("full_attention", 10_000.0),
    "a window of 130": window(130),
    "swapped layers": layers_swapped(4, 5),
    "a missing norm weight": filled("model.layers.27.mlp_norm.weight", 1.0),
    "the halves of a GeGLU": parts_swapped("model.layers.13.mlp.Wi.weight", 2),
}
MORE_FAULTS = {
    "a base 1 % off": base("full_attention", 80_800.0),
    "another base, local": base("sliding_attention", 80_000.0),
    "a window of 126": window(126),
    "a window of 64": window(64),
    "a global layer made local": kind_of_layer(3, "sliding_attention"),
    "a local layer made global": kind_of_layer(4, "full_attention"),
    "the last layers swapped": layers_swapped(26, 27),
    "queries and keys swapped": parts_swapped("model.layers.13.attn.Wqkv.weight", 3),
    "a transposed projection": transposed("model.layers.13.attn.Wo.weight"),
    "a transposed head": transposed("head.dense.weight"),
    "no final norm": filled("model.final_norm.weight", 1.0),
    "no norm of the head": filled("head.norm.weight", 1.0),
    "no bias": filled("decoder.bias", 0.0),
}


def masks(theirs: Any, ids: torch.Tensor, mask: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Logits with one mask in the global layers and another in the local ones."""
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

    embeds = theirs.model.embeddings(ids)
    by_kind = {
        "full_attention": create_bidirectional_mask(theirs.config, embeds, attention_mask=mask),
        "sliding_attention": create_bidirectional_sliding_window_mask(theirs.config, embeds, attention_mask=local),
    }
    return theirs(input_ids=ids, attention_mask=by_kind).logits


def as_at_the_right(mask: torch.Tensor) -> torch.Tensor:
    return (torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)).long()


def short_rows_lost(theirs: Any, ids: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    logits = theirs(input_ids=ids, attention_mask=mask).logits.clone()
    logits[mask.sum(1) == length] = 0
    return logits


PADDING_FAULTS = {
    "no mask": lambda theirs, ids, mask: theirs(input_ids=ids, attention_mask=torch.ones_like(mask)).logits,
    "no mask in local layers": lambda theirs, ids, mask: masks(theirs, ids, mask, torch.ones_like(mask)),
    "no mask in global layers": lambda theirs, ids, mask: masks(theirs, ids, torch.ones_like(mask), mask),
    "padding sought at the right": lambda theirs, ids, mask: (
        theirs(input_ids=ids, attention_mask=as_at_the_right(mask)).logits
    ),
    "padding sought at the left": lambda theirs, ids, mask: (
        theirs(input_ids=ids, attention_mask=as_at_the_right(mask).flip(1)).logits
    ),
    "positions twice as far apart beside padding at the left": lambda theirs, ids, mask: moved(theirs, ids, mask),
    "an empty text": lambda theirs, ids, mask: short_rows_lost(theirs, ids, mask, 2),
    "a text of one token": lambda theirs, ids, mask: short_rows_lost(theirs, ids, mask, 3),
}


def moved(theirs: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits with positions counted over real tokens twice as far apart in rows padded at the left."""
    positions = (mask.cumsum(1) - 1).clamp(min=0) * torch.where(mask[:, :1] == 0, 2, 1)
    return theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
