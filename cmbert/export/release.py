"""From a run, a checkpoint or an exported folder to a model one can use: opening it, and exporting it behind a gate."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cmbert.checkpoint.state import TrainState, read_state
from cmbert.checkpoint.weights import load_weights
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import CheckpointError
from cmbert.export.card import render_card
from cmbert.export.gate import Comparison
from cmbert.export.hf import Format, check_export, export_folder
from cmbert.export.lineage import read_lineage
from cmbert.export.serving import export_served, is_served
from cmbert.memory import require_memory
from cmbert.model.cost import FP32_BYTES
from cmbert.model.folder import load_folder, read_config
from cmbert.model.heads import MaskedLanguageModel
from cmbert.runs.directory import read_run_recipe, run_of
from cmbert.runs.weights import choose_weights
from cmbert.tokenizer import Tokenizer, load_tokenizer

DEFAULT_CONTEXT_TOKENS = 1024  # for an exported folder, which does not say at what length it was trained
PROBE_DOCUMENTS = 1000  # the export gate picks its texts among this many
NUM_PROBES = 8  # half of them the longest, half the first


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to feed it."""

    model: MaskedLanguageModel
    tokenizer: Tokenizer
    context_tokens: int
    run: Path | None
    """Its run directory; None for an exported folder."""
    training_shards: list[ShardSet]
    """Empty for an exported folder."""
    training_amounts: list[float]
    """How much of each was read, in rows, or in the recipe's proportion if the checkpoint does not say."""


def open_model(path: Path) -> TrainedModel:
    """Open a run directory, a checkpoint or an exported folder; the model is fp32, on the CPU."""
    if (path / "config.json").is_file():
        _require_memory(path, read_config(path))
        model, _ = load_folder(path)
        return TrainedModel(model, load_tokenizer(path), DEFAULT_CONTEXT_TOKENS, None, [], [])
    checkpoint = choose_weights(path)
    recipe, tokenizer = _recipe_and_tokenizer(path, checkpoint)
    model = MaskedLanguageModel(recipe.model)
    model.load_state_dict(load_weights(checkpoint))
    shards = [ShardSet(source.path) for source in recipe.data.sources]
    amounts = _amounts_read(recipe, read_state(checkpoint), shards)
    return TrainedModel(model.eval(), tokenizer, recipe.data.context_tokens, run_of(checkpoint), shards, amounts)


def _amounts_read(recipe: Recipe, state: TrainState, shards: list[ShardSet]) -> list[float]:
    begins = state.first_rows or [0] * len(shards)
    rows = [float(row - begin) for row, begin in zip(state.source_rows, begins, strict=False)]
    weights = [source.weight for source in recipe.data.sources]
    return next(found for found in (rows, weights, [float(s.num_tokens) for s in shards]) if any(found))


def export(path: Path, output: Path, format: Format) -> Comparison:
    """Export a run's latest checkpoint, or a checkpoint, to `output` after comparing logits on training text.

    To ONNX also a model folder; what it gives, logits or sentence vectors, is compared on texts of ours. Returns what
    the comparison found. Raises CheckpointError when they differ, ConfigError when the format cannot hold the model.
    """
    if format == "onnx" and is_served(path):
        return export_served(path, output)
    checkpoint = choose_weights(path)
    recipe, tokenizer = _recipe_and_tokenizer(path, checkpoint, num_copies=4)  # one in fp64 for the gate, beside two
    check_export(recipe.model, tokenizer.directory, output, format)
    texts = probe_texts(ShardSet(recipe.data.sources[0].path), tokenizer)
    lineage = read_lineage(path)
    return export_folder(
        load_weights(checkpoint),
        recipe.model,
        tokenizer.directory,
        output,
        format=format,
        texts=texts,
        card=lambda measured: render_card(lineage, format, measured, tokenizer),
    )


def _recipe_and_tokenizer(path: Path, checkpoint: Path, num_copies: int = 2) -> tuple[Recipe, Tokenizer]:
    """num_copies: of the weights in fp32 that must fit; at least the checkpoint's and the model's."""
    recipe = read_run_recipe(run_of(checkpoint))
    _require_memory(path, recipe.model, num_copies)
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if read_state(checkpoint).tokenizer_fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{checkpoint}: trained with another tokenizer than {tokenizer.directory}; put that one back"
        )
    return recipe, tokenizer


def _require_memory(path: Path, model: ModelConfig, num_copies: int = 2) -> None:
    needed = num_copies * FP32_BYTES * count_parameters(model).total
    require_memory(f"opening {path}", needed, torch.device("cpu"), "open it on a machine with more memory")


def probe_texts(shards: ShardSet, tokenizer: Tokenizer) -> list[str]:
    """Return real texts for the gate: the first documents of a shard set and the longest among many."""
    lengths = shards.shard_lengths(0)[:PROBE_DOCUMENTS]
    longest = lengths.argsort(kind="stable")[::-1][: NUM_PROBES // 2].tolist()
    documents = dict.fromkeys([*range(min(NUM_PROBES - len(longest), len(lengths))), *longest])
    return [tokenizer.decode(shards.read(document)[0].tolist()) for document in documents]
