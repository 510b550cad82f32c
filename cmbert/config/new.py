"""A recipe of one's own: two stages for a size and an amount of text, every number with its reason, and what to type.

The rules are those of defaults.py; what is here beyond them is the choice of a size, a vocabulary and a budget.
"""

import math
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmbert.config import defaults
from cmbert.config.load import build_recipe, merge
from cmbert.config.parameters import Parameters, count_parameters
from cmbert.config.schema import ModelConfig
from cmbert.config.texts import Amount
from cmbert.errors import ConfigError
from cmbert.files.names import fault_of_name
from cmbert.files.whole import json_text, write_text

FEW_PASSES, MANY_PASSES = 4, 20
"""Over the text: four are nearly worth new text (arXiv 2305.16264); masks differ each time, so up to twenty (ours)
while that is no more than LEAST_BUDGET."""
LEAST_BUDGET = 4_500_000  # tokens: quickstart's; with fewer a model learns little beyond how often words come
TOKENS_PER_PARAMETER = 20  # from which a larger model pays (arXiv 2203.15556)
MOST_TOKENS_PER_PARAMETER = 1_000  # beyond which a size learns little more (ours; recipes/base has 903)
SMALLEST_VOCABULARY = 1_024  # ids; ours: 256 of them are the bytes
SECOND_STAGE = 10  # stage 2 trains on one tenth of stage 1's tokens: base and large


@dataclass(frozen=True)
class Size:
    """A model that has been planned, with its budget in tokens, where no text says otherwise, and its two contexts."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    budget: int
    contexts: tuple[int, int]
    from_: str

    def parameters(self, vocabulary: int) -> Parameters:
        """Return the parameters of the model with so many ids."""
        return count_parameters(
            ModelConfig(
                num_layers=self.layers,
                hidden_size=self.width,
                num_heads=self.heads,
                intermediate_size=self.intermediate,
                vocab_size=vocabulary,
            )
        )


SIZES = {
    "tiny": Size(3, 128, 2, 256, 8_192, LEAST_BUDGET, (256, 1_024), "recipes/quickstart's: minutes on two CPU cores"),
    "small": Size(6, 384, 6, 1_024, 16_384, 1_000_000_000, (1_024, 4_096), "ours, between tiny and base: one GPU"),
    "base": Size(12, 768, 12, 2_048, 32_768, 100_000_000_000, (1_024, 8_192), "recipes/base's: a node of GPUs"),
    "large": Size(28, 1_024, 16, 2_624, 32_768, 1_100_000_000_000, (1_024, 8_192), "the paper's: several nodes"),
}


@dataclass(frozen=True)
class Order:
    """What is to be written: names, the size, the vocabulary and the budget, each with how it was chosen."""

    folder: Path
    size: str
    why_size: str
    vocabulary: int
    tokens: int
    why_tokens: str

    def recipes(self) -> tuple[str, str]:
        """Return the two recipes as TOML, without their heads."""
        return _first_stage(self), _second_stage(self)


def vocabulary_for(utf8_bytes: int) -> int:
    """Return the ids for so much text: 8,192 at the quickstart's 9 MB, twice as many for ten times the text; x 64."""
    ids = 8_192 * 2 ** math.log10(max(utf8_bytes, 1) / 9e6)
    return max(SMALLEST_VOCABULARY, min(32_768, round(ids / 64) * 64))


def plan_order(folder: Path, size: str | None, text: Amount | None, tokens: int | None) -> Order:
    """Choose what was not given. Raises ConfigError for a name that cannot be one."""
    if fault := fault_of_name(str(folder)):
        raise ConfigError(f"{folder}: {fault}")
    if not str(folder).isprintable():
        raise ConfigError(f"{folder}: a name with a character that cannot be printed; choose another")
    if text is None:
        wished = tokens
    else:
        few, many = FEW_PASSES * text.tokens, MANY_PASSES * text.tokens
        wished = tokens or max(few, min(many, LEAST_BUDGET))
    why_size = "as asked"
    if size is None:
        fitting = [
            name
            for name, s in SIZES.items()
            if s.parameters(s.vocabulary).total * TOKENS_PER_PARAMETER <= (wished or 0)
        ]
        size = fitting[-1] if fitting else "tiny"
        why_size = f"the largest with {TOKENS_PER_PARAMETER} tokens a parameter" if fitting else "the smallest"
    chosen = SIZES[size]
    vocabulary = min(chosen.vocabulary, vocabulary_for(text.utf8_bytes)) if text else chosen.vocabulary
    if tokens:
        return Order(folder, size, why_size, vocabulary, tokens, "as asked")
    if text is None:
        return Order(
            folder, size, why_size, vocabulary, chosen.budget, "the size's own; --text or --tokens says better"
        )
    most = MOST_TOKENS_PER_PARAMETER * chosen.parameters(vocabulary).total
    assert wished is not None
    if wished > most:
        return Order(folder, size, why_size, vocabulary, most, f"{MOST_TOKENS_PER_PARAMETER:,} for every parameter")
    passes = f"{wished / text.tokens:.1f} passes over about {text.tokens / 1e6:,.1f}M tokens of text before cleaning"
    return Order(folder, size, why_size, vocabulary, wished, passes)


def write_order(order: Order, commands: list[str]) -> list[Path]:
    """Write both recipes, with the commands at the head of the first; return their paths. Raises ConfigError.

    Nothing is written where a recipe of that name is, or where the numbers make none.
    """
    paths = [order.folder / f"stage{number}.toml" for number in (1, 2)]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: is there already; choose another name, or remove it")
    first, second = order.recipes()
    table = tomllib.loads(first)
    build_recipe(table, str(paths[0]))
    changes = tomllib.loads(second)
    del changes["extends"]
    build_recipe(merge(table, changes), str(paths[1]))
    order.folder.mkdir(parents=True, exist_ok=True)
    head = f"# {order.folder.name}, stage 1, as `cmbert new` wrote it. Change what you like.\n"
    write_text(paths[0], head + "".join(f"# {line}\n" for line in ("To type, in order:", *commands)) + first)
    write_text(
        paths[1], f"# {order.folder.name}, stage 2: longer rows from stage 1's weights; what differs alone.\n{second}"
    )
    return paths


def commands_for(order: Order, texts: dict[str, list[Path]], processes: int, *, measure: bool) -> list[str]:
    """Return what to type after `cmbert new`, in order.

    texts: name of the texts' field or column -> files and folders. processes: as many as there are GPUs or cores to
    use. measure: whether the plan is to train ten steps.
    """
    rows = min(tomllib.loads(recipe)["train"]["rows_per_step"] for recipe in order.recipes())
    ranks = max(count for count in range(1, rows + 1) if rows % count == 0 and count <= max(processes, 1))

    def at(*parts: str) -> str:
        return shlex.quote(str(order.folder.joinpath(*parts)))

    inputs = {}  # of clean, by the folder below that of all cleaned texts: one call has one name for the texts
    for key, paths in texts.items():
        named = f" --text-key {shlex.quote(key)}" if key != "text" else ""
        inputs[key if len(texts) > 1 else ""] = " ".join(shlex.quote(str(path)) for path in paths) + named
    inputs = inputs or {"": at("raw")}
    sets = {"text": "shards", "heldout_text": "heldout"}
    return [
        *(f"data_tools clean --input {raw} --heldout {at('heldout_text', part)}" for part, raw in inputs.items()),
        *(
            f"data_tools clean --input {raw} --output {at('text', part)} --against {at('heldout_text')}"
            for part, raw in inputs.items()
        ),
        f"data_tools train-tokenizer --input {at('text')} --vocab-size {order.vocabulary} --output {at('tokenizer')} "
        f"--report {at('tokenizer.html')}",
        *(
            f"data_tools preprocess --tokenizer {at('tokenizer')} --input {at(text)} --output {at(shards)}"
            for text, shards in sets.items()
        ),
        f"cmbert plan {at('stage1.toml')} --gpus {ranks}" + " --measure" * measure,
        *(f"cmbert train {at(f'stage{number}.toml')} --processes {ranks}" for number in (1, 2)),
        f"cmbert eval {at('runs', 'stage2')} --data {at('heldout')}",
        f"cmbert export {at('runs', 'stage2')} --output {at('export')}",
    ]


def _first_stage(order: Order) -> str:
    size, folder = SIZES[order.size], order.folder
    context, longest = size.contexts
    rows = defaults.rows_per_step(order.tokens, context)
    rate, warmup = defaults.lr_max(size.width, size.layers), defaults.warmup_tokens(order.tokens)
    short = {"kind": ("adamw", "for a short run"), "beta2": (0.98, "likewise")}
    return _toml(
        {
            "": {"run_directory": (f"{folder}/runs/stage1", "metrics, log and checkpoints")},
            "model": {
                "num_layers": (size.layers, f"{order.size} ({order.why_size}): {size.from_}"),
                "hidden_size": (size.width, f"{size.parameters(order.vocabulary).total / 1e6:,.1f}M parameters in all"),
                "num_heads": (size.heads, "of 64 each"),
                "intermediate_size": (size.intermediate, "about 8/3 of the width"),
                "vocab_size": (order.vocabulary, "the tokenizer's; a multiple of 64, more for more text"),
                "max_length": (longest, "the longest row, of stage 2"),
                "init_std": _init_std(size.width),
            },
            "data": {
                "tokenizer": (f"{folder}/tokenizer", "made by data_tools train-tokenizer"),
                "context_tokens": (context, "length of a row: short rows cost less"),
            },
            "[data.sources]": {"path": (f"{folder}/shards", "made by data_tools preprocess")},
            "mask": {"warmup_tokens": (warmup, "15 -> 30 -> 15 %: the peak at the end of the warm-up")},
            **({"optimizer": short} if order.size == "tiny" else {}),
            "schedule": {
                "lr_max": (rate, "1.86 / (width x root of the layers), 5e-3 at most"),
                "lr_min": (defaults.lr_min(rate), "a tenth of lr_max"),
                "warmup_tokens": (warmup, "2 % of the stage, 3 billion at most"),
            },
            "train": {
                "total_tokens": (order.tokens, order.why_tokens),
                "rows_per_step": (rows, f"{rows * context:,} tokens a step: larger for a larger budget"),
                "micro_batch_rows": (_micro(size, rows, context), "most rows of one forward; fewer need less memory"),
                "deepspeed": ("zero1", "all weights on every GPU, the optimizer divided"),
                **_intervals(order.tokens, rows * context),
            },
            "evaluation": _evaluation(order, order.tokens, rows * context, max(1, 16_384 // context)),
        }
    )


def _second_stage(order: Order) -> str:
    size, folder = SIZES[order.size], order.folder
    first, context = size.contexts
    tokens = max(1, order.tokens // SECOND_STAGE)
    rows = max(1, defaults.rows_per_step(order.tokens, first) * first // context)
    rate = defaults.lr_max(size.width, size.layers, follows=True)
    return _toml(
        {
            "": {
                "extends": (f"{folder}/stage1.toml", "paths are relative to the working directory"),
                "run_directory": (f"{folder}/runs/stage2", "a run of its own"),
            },
            "data": {"context_tokens": (context, "the same shards, packed anew")},
            "mask": {
                "start_rate": (0.15, "stay where stage 1 ended"),
                "peak_rate": (0.15, "likewise"),
                "end_rate": (0.15, "likewise"),
                "warmup_tokens": (0, "no peak"),
            },
            "schedule": {
                "lr_max": (rate, "a sixth of stage 1's, as in base and large"),
                "lr_min": (defaults.lr_min(rate), "a tenth of lr_max"),
                "warmup_tokens": (defaults.warmup_tokens(tokens, follows=True), "1 % of the stage"),
            },
            "train": {
                "total_tokens": (tokens, "a tenth of stage 1's, as in base and large"),
                "rows_per_step": (rows, "the same tokens a step as stage 1, one row at least"),
                "micro_batch_rows": (_micro(size, rows, context), "as many tokens as in stage 1 at most"),
                "init_from": (f"{folder}/runs/stage1", "its weights"),
                **_intervals(tokens, rows * context),
            },
            "evaluation": _evaluation(order, tokens, rows * context, max(1, 16_384 // context)),
        }
    )


def _init_std(width: int) -> tuple[float, str]:
    """0.02 x (1,024 / width) to the power of 2/3: quickstart's 0.08 at 128, 0.024 at 768."""
    return float(f"{0.02 * (1024 / width) ** (2 / 3):.1e}"), "0.02 belongs to a width of 1,024; narrow models need more"


def _micro(size: Size, rows: int, context: int) -> int:
    return defaults.micro_batch_rows(rows, context, size.width, size.layers)


def _intervals(tokens: int, step: int) -> dict[str, tuple[Any, str]]:
    steps = -(-tokens // step)
    return {
        "checkpoint_every_steps": (max(1, min(1000, steps // 10)), f"ten in {steps:,} steps, or every 1,000"),
        "log_every_steps": (max(1, min(50, steps // 50)), "a line now and then"),
    }


def _evaluation(order: Order, tokens: int, step: int, max_rows: int) -> dict[str, tuple[Any, str]]:
    return {
        "shards": (f"{order.folder}/heldout", "the text that clean set aside"),
        "every_steps": (max(1, min(2000, -(-tokens // step) // 10)), "ten times a stage, or every 2,000 steps"),
        "max_rows": (max_rows, "16,384 tokens: a second or two"),
    }


def _toml(sections: dict[str, dict[str, tuple[Any, str]]]) -> str:
    lines: list[str] = []
    for section, keys in sections.items():
        lines += ["", f"[{section}]"] if section else []
        for key, (value, why) in keys.items():
            text = (
                json_text(value) if isinstance(value, str) else f"{value:_}" if isinstance(value, int) else f"{value:g}"
            )
            lines.append(f"{f'{key} = {text}':<40} # {why}")
    return "\n".join(lines) + "\n"
