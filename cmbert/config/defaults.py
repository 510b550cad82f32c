"""What a recipe does not state and other values imply: a rule for each key, with its reason and how near it comes.

Anchors are the shipped recipes, every one of which states these keys itself: quickstart (3 layers x 128, 4.5M tokens),
medium of the ablations (12 x 512, 10B), base (12 x 768, 100B), large (28 x 1,024, 1.1T). All rules are ours. They take
any positive numbers; what makes no sense is refused by check.py, with the values given.
"""

import math
from collections.abc import Callable
from typing import Any

from cmbert.config.schema import ModelConfig

HEAD_WIDTH = 64  # medium, base and large, and quickstart, too: the width that attention kernels are made for
TILE = 64  # widths are multiples of it: matrix kernels work in tiles
USUAL_CONTEXT = 1024  # tokens: base and large (P); longer documents are for a second stage


def num_heads(hidden_size: int) -> int:
    """Return the heads of a width: 64 wide each, or the nearest number that divides it into even parts (all exact)."""
    wished = hidden_size / HEAD_WIDTH
    widest = min(hidden_size, 2**20)  # a wider one is refused, with its name
    possible = [heads for heads in range(1, widest // 2 + 1) if hidden_size % (2 * heads) == 0]
    return min(possible, key=lambda heads: abs(heads - wished), default=1)


def intermediate_size(hidden_size: int) -> int:
    """Return 8/3 of the width in whole tiles: GeGLU has 3 matrices where an MLP of 4 x has 2.

    Base exact, large 2,752 for 2,624, medium 1,344 for 1,408, quickstart 320 for 256.
    """
    return max(TILE, round(hidden_size * 8 / 3 / TILE) * TILE)


def context_tokens(max_length: int) -> int:
    """Return the length of a row, tokens: 1,024, or what the model is planned for if that is less."""
    return min(USUAL_CONTEXT, max_length)


def rows_per_step(total_tokens: int, context_tokens: int) -> int:
    """Return the rows of a step, a power of two: 2,048 tokens up to 4.5M, from there by the power 0.63 of the budget.

    Few tokens need many steps, many tokens need many GPUs. Quickstart and base exact, large 4,096 for 4,928, medium 256
    for 512.
    """
    tokens = 2048 * max(total_tokens / 4.5e6, 1) ** 0.63
    return 2 ** max(0, round(math.log2(tokens / max(context_tokens, 1))))


def micro_batch_rows(rows_per_step: int, context_tokens: int, hidden_size: int, num_layers: int) -> int:
    """Return the most rows of a forward, a power of two: 256M positions x width x layers fit where 24 GB are.

    Half of base's and less than large's, which are planned for 40 and 80 GB; a small step is taken whole.
    """
    rows = 256e6 / max(context_tokens * hidden_size * num_layers, 1)
    return max(1, min(rows_per_step, 2 ** math.floor(math.log2(max(rows, 1)))))


def lr_max(hidden_size: int, num_layers: int, follows: bool = False) -> float:
    """Return the highest learning rate: 1.86 / (width x root of the layers), 5e-3 at most, to two digits.

    For AdamW: medium 1.05e-3 for 1e-3, base 7e-4 for 8e-4, large 3.4e-4 for 3e-4; quickstart's, with Muon, is twice it.
    A stage that follows another takes a sixth, as stage 2 of base and large does.
    """
    rate = min(5e-3, 1.86 / max(hidden_size * math.sqrt(max(num_layers, 1)), 1))
    return float(f"{rate / (6 if follows else 1):.1e}")


def lr_min(lr_max: float) -> float:
    """Return the rate at the end: a tenth of the highest, as in every shipped recipe."""
    return float(f"{lr_max / 10:.3g}")


def warmup_tokens(total_tokens: int, follows: bool = False) -> int:
    """Return the length of the warm-up, tokens: 2 % of the stage (1 % if it follows another), 3 billion at most.

    Large and base's stage 2 exact, base 2B for 3B, medium 200M for 300M, quickstart 90,000 for 60,000.
    """
    return min(3_000_000_000, max(total_tokens, 0) // (100 if follows else 50))


Rule = tuple[str, Callable[..., Any], tuple[str, ...]]
_RULES: tuple[Rule, ...] = (  # dotted key, its rule, the keys that it reads: each finds them above
    ("model.num_heads", num_heads, ("model.hidden_size",)),
    ("model.intermediate_size", intermediate_size, ("model.hidden_size",)),
    ("data.context_tokens", context_tokens, ("model.max_length",)),
    ("train.rows_per_step", rows_per_step, ("train.total_tokens", "data.context_tokens")),
    (
        "train.micro_batch_rows",
        micro_batch_rows,
        ("train.rows_per_step", "data.context_tokens", "model.hidden_size", "model.num_layers"),
    ),
    ("schedule.lr_max", lr_max, ("model.hidden_size", "model.num_layers", "follows")),
    ("schedule.lr_min", lr_min, ("schedule.lr_max",)),
    ("schedule.warmup_tokens", warmup_tokens, ("train.total_tokens", "follows")),
    ("mask.warmup_tokens", lambda warmup: warmup, ("schedule.warmup_tokens",)),
)
WITH_THE_RATE = ("schedule.warmup_tokens", "mask.warmup_tokens")
"""Derived only where the rate is: a recipe that states schedule.lr_max has the schema's, 0, as it always had."""
DERIVED = tuple(key for key, _, _ in _RULES)
"""Dotted keys that a recipe need not state."""


def fill_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's table with every derived key that it lacks. Its required keys are there, of the right types."""
    filled = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    train, rated = filled["train"], "lr_max" in filled.get("schedule", {})
    known: dict[str, Any] = {
        "model.max_length": ModelConfig.max_length,
        "follows": bool(train.get("init_from")) and not train.get("init_tiling"),
    }
    for section, values in filled.items():
        known |= {f"{section}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
    for key, rule, reads in _RULES:
        if key not in known and not (rated and key in WITH_THE_RATE):
            section, _, name = key.partition(".")
            known[key] = filled.setdefault(section, {})[name] = rule(*(known[read] for read in reads))
    return filled
