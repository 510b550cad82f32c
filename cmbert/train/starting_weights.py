"""The weights a stage begins with: fresh ones, another run's, or a smaller model's tiled."""

import dataclasses
import logging
from pathlib import Path

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.checkpoint.weights import load_weights
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.errors import ConfigError
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.model.tiling import check_tiling, tile_weights
from cmbert.runs.directory import read_run_recipe, run_of
from cmbert.runs.weights import choose_weights, progress_of
from cmbert.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

MAY_DIFFER = ("rope_base_global", "rope_base_local", "max_length", "init_std", "norm_eps")
"""Of [model], between a stage and the one it starts from; everything else is the weights' shape or use."""


def check_starting_weights(recipe: Recipe, *, allow_unfinished: bool = False) -> None:
    """Raise CheckpointError when train.init_from has no checkpoint, ConfigError when its model does not fit.

    allow_unfinished: take a run's newest checkpoint also before its last step; else ConfigError. Who names a checkpoint
    in train.init_from has chosen it.
    """
    if not recipe.train.init_from:
        return
    checkpoint = require_checkpoint(Path(recipe.train.init_from))
    step, last_step = progress_of(checkpoint)
    if step < last_step and checkpoint != Path(recipe.train.init_from) and not allow_unfinished:
        raise ConfigError(
            f"{recipe.train.init_from} (train.init_from) is not finished: its newest checkpoint, {checkpoint.name}, is "
            f"of step {step:,} of {last_step:,}; train it to its end, or start from there with --allow-unfinished"
        )
    _check_tokenizer(recipe, checkpoint)
    source = _source_model(recipe)
    if recipe.train.init_tiling:
        check_tiling(source, recipe.model)
        return
    for field in dataclasses.fields(ModelConfig):
        found, wanted = getattr(source, field.name), getattr(recipe.model, field.name)
        if field.name not in MAY_DIFFER and found != wanted:
            raise ConfigError(
                f"model.{field.name}: {wanted}, but {recipe.train.init_from} (train.init_from) has {found}; make them "
                "equal, or set train.init_tiling = true to start from a smaller model"
            )


def _check_tokenizer(recipe: Recipe, checkpoint: Path) -> None:
    """Raise ConfigError if the ids of the weights are another tokenizer's."""
    tokenizer = recipe.data.tokenizer
    if load_tokenizer(tokenizer).fingerprint != read_state(checkpoint).tokenizer_fingerprint:
        raise ConfigError(
            f"data.tokenizer: {tokenizer} is not the tokenizer that the weights of {recipe.train.init_from} "
            f"(train.init_from) were trained with; that run names {read_run_recipe(run_of(checkpoint)).data.tokenizer}"
        )


def starting_model(recipe: Recipe) -> MaskedLanguageModel:
    """Build the model of a fresh start, fp32 on the CPU, the same on every rank."""
    model = MaskedLanguageModel(recipe.model, recipe.kernels)
    initialise(model, recipe.train.seed)
    if recipe.train.init_from:
        weights = load_weights(choose_weights(Path(recipe.train.init_from)))
        if recipe.train.init_tiling:
            source = _source_model(recipe)
            tile_weights(weights, source, model)
            logger.info(
                "tiled %s (%d layers x %d) to %d layers x %d", recipe.train.init_from, source.num_layers,
                source.hidden_size, recipe.model.num_layers, recipe.model.hidden_size,
            )  # fmt: skip
        else:
            model.load_state_dict(weights)
    return model


def _source_model(recipe: Recipe) -> ModelConfig:
    return read_run_recipe(run_of(require_checkpoint(Path(recipe.train.init_from)))).model
