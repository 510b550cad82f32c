"""The weights a stage begins with: fresh ones, another run's, an imported model's, or a smaller model's tiled."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.checkpoint.weights import load_weights
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.errors import ConfigError
from cmbert.model.config_json import is_model_folder
from cmbert.model.folder import load_folder, read_config
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.model.tiling import check_tiling, tile_weights
from cmbert.model.vocabulary_rows import with_new_ids, with_rows
from cmbert.runs.directory import read_run_recipe, run_of
from cmbert.runs.weights import choose_weights, progress_of
from cmbert.tokenizer import Extension, load_tokenizer, read_extension

logger = logging.getLogger(__name__)

MAY_DIFFER = ("rope_base_global", "rope_base_local", "max_length", "init_std", "norm_eps")
"""Of [model], between a stage and the one it starts from; everything else is the weights' shape or use."""


@dataclass(frozen=True)
class Source:
    """What train.init_from names: a run, a checkpoint, or a model folder."""

    path: Path
    model: ModelConfig
    tokenizer: str
    """Folder of its tokenizer."""
    fingerprint: str
    """Of its tokenizer."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Return its weights, fp32 on the CPU. Raises CheckpointError."""
        if is_model_folder(self.path):
            return load_folder(self.path)[0].state_dict()
        return load_weights(choose_weights(self.path))


def find_source(path: Path) -> Source:
    """Return what train.init_from names. Raises CheckpointError when no weights are there."""
    if is_model_folder(path):
        return Source(path, read_config(path), str(path), load_tokenizer(path).fingerprint)
    checkpoint = require_checkpoint(path)
    recipe = read_run_recipe(run_of(checkpoint))
    return Source(path, recipe.model, recipe.data.tokenizer, read_state(checkpoint).tokenizer_fingerprint)


def check_starting_weights(recipe: Recipe, *, allow_unfinished: bool = False) -> None:
    """Raise CheckpointError when train.init_from has no weights, ConfigError when its model does not fit.

    allow_unfinished: take a run's newest checkpoint also before its last step; else ConfigError. Who names a checkpoint
    in train.init_from has chosen it.
    """
    if not recipe.train.init_from:
        return
    source = find_source(Path(recipe.train.init_from))
    if not is_model_folder(source.path):
        _check_finished(source.path, allow_unfinished)
    extension = _extension(recipe, source)
    if recipe.train.init_tiling:
        check_tiling(source.model, recipe.model)
        return
    may_differ = (*MAY_DIFFER, *(["vocab_size"] if extension else []))
    for field in dataclasses.fields(ModelConfig):
        found, wanted = getattr(source.model, field.name), getattr(recipe.model, field.name)
        if field.name not in may_differ and found != wanted:
            raise ConfigError(
                f"model.{field.name}: {wanted}, but {recipe.train.init_from} (train.init_from) has {found}; make them "
                "equal, or set train.init_tiling = true to start from a smaller model"
            )


def _check_finished(path: Path, allow_unfinished: bool) -> None:
    checkpoint = require_checkpoint(path)
    step, last_step = progress_of(checkpoint)
    if step < last_step and checkpoint != path and not allow_unfinished:
        raise ConfigError(
            f"{path} (train.init_from) is not finished: its newest checkpoint, {checkpoint.name}, is of step {step:,} "
            f"of {last_step:,}; train it to its end, or start from there with --allow-unfinished"
        )


def _extension(recipe: Recipe, source: Source) -> Extension | None:
    """Return how the recipe's tokenizer extends that of the weights, None if it is theirs. Raises ConfigError."""
    folder = recipe.data.tokenizer
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint == source.fingerprint:
        return None
    extension = read_extension(tokenizer)
    if extension and extension["parent_fingerprint"] == source.fingerprint:
        if recipe.train.init_tiling:
            raise ConfigError(
                f"train.init_tiling: {folder} has other ids than {source.path}; tile first, then extend the tokenizer"
            )
        return extension
    raise ConfigError(
        f"data.tokenizer: {folder} is not the tokenizer that the weights of {source.path} (train.init_from) were "
        f"trained with; that is {source.tokenizer}, or one that `data_tools extend-tokenizer` made of it"
    )


def starting_model(recipe: Recipe) -> MaskedLanguageModel:
    """Build the model of a fresh start, fp32 on the CPU, the same on every rank."""
    model, tokenizer = MaskedLanguageModel(recipe.model, recipe.kernels), load_tokenizer(recipe.data.tokenizer)
    initialise(model, recipe.train.seed)
    if not recipe.train.init_from:
        if tokenizer.vocab_size < recipe.model.vocab_size:
            model.load_state_dict(with_rows(model.state_dict(), tokenizer.vocab_size, recipe.model.vocab_size))
        return model
    source = find_source(Path(recipe.train.init_from))
    weights = source.weights()
    if recipe.train.init_tiling:
        tile_weights(weights, source.model, model)
        logger.info(
            "tiled %s (%d layers x %d) to %d layers x %d", recipe.train.init_from, source.model.num_layers,
            source.model.hidden_size, recipe.model.num_layers, recipe.model.hidden_size,
        )  # fmt: skip
    elif extension := _extension(recipe, source):
        parts, rows = extension["parts"], tokenizer.vocabulary.rows
        logger.info("%s new ids start as the mean of the tokens that spelled them before", f"{len(parts):,}")
        model.load_state_dict(with_new_ids(weights, extension["parent_ids"], parts, rows))
    else:
        model.load_state_dict(weights)
    return model
