"""Model folders in Hugging Face's layout, read without transformers: what `cmbert export` and `cmbert import` write,
and others' of the same family.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, first_line
from cmbert.files.json_types import read_as
from cmbert.model.config_json import CONFIG_FILE, FORMER_TYPE, model_config, norm_of, read_json_object
from cmbert.model.heads import DECODER, EMBEDDING, MaskedLanguageModel
from cmbert.model.init import WithoutInitialisation

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "pytorch_model.pt")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NORM_WEIGHT = "norm.weight"
"""How the names of norms' weights end. In files an RMSNorm's are (1, D), so that whatever knows only LayerNorm, whose
are (D,), fails to load them; modules here have (D,)."""


def load_folder(directory: Path) -> tuple[MaskedLanguageModel, ModelConfig]:
    """Read our own model, fp32 on the CPU, from a model folder; CheckpointError if it is none or another's."""
    config = read_config(directory)
    return model_from(read_weights(directory), config, str(directory)), config


def read_config(directory: Path) -> ModelConfig:
    """Read the configuration of a model folder; CheckpointError if it is none."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} has no {CONFIG_FILE}: give a folder written by `cmbert export`")
    return model_config(read_json_object(path), path)


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model folder in fp32, one file's or several files'.

    Raises CheckpointError for a folder without safetensors, for damaged ones, for numbers that are no floats and for
    norms of another kind than config.json says.
    """
    index = read_as(directory / INDEX_FILE, dict[str, Any], error=CheckpointError, remedy="download the model again")
    names = [WEIGHTS_FILE]
    if index is not None and not (directory / WEIGHTS_FILE).is_file():
        names = sorted({str(name) for name in (index.get("weight_map") or {}).values()})
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        weights |= _read_file(directory, name)
    if other := next((name for name, weight in weights.items() if weight.dtype not in FLOATS), None):
        raise CheckpointError(
            f"{directory}: {other} is {weights[other].dtype}, no floating-point weight: a quantised model cannot be "
            "trained on; take the one that it was made of"
        )
    return {name: weight.float() for name, weight in _flat_norms(directory, weights).items()}


def rows_for_file(weights: Mapping[str, torch.Tensor], norm: str) -> dict[str, torch.Tensor]:
    """Return the weights of a model as files have them: those of RMSNorms (1, D)."""
    is_row = norm == "rmsnorm"
    return {name: weight[None] if is_row and name.endswith(NORM_WEIGHT) else weight for name, weight in weights.items()}


def _flat_norms(directory: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    path = directory / CONFIG_FILE
    values = read_json_object(path)
    is_row = norm_of(values) == "rmsnorm" and values.get("model_type") != FORMER_TYPE
    for name in [name for name in weights if name.endswith(NORM_WEIGHT)]:
        if (weights[name].ndim == 2) != is_row:
            raise CheckpointError(
                f"{path}: norm is {norm_of(values)!r}, and {name} is of another kind: one of both is another "
                "model's, or changed; export or download the model again"
            )
    return {
        name: weight.flatten() if is_row and name.endswith(NORM_WEIGHT) else weight for name, weight in weights.items()
    }


def _read_file(directory: Path, name: str) -> dict[str, torch.Tensor]:
    path = directory / name
    if Path(name).name != name:
        raise CheckpointError(f"{directory / INDEX_FILE}: {name!r} is no name of a file beside it; download it again")
    if not path.is_file():
        pickles = [found for found in PICKLES if (directory / found).is_file()]
        if pickles and name == WEIGHTS_FILE:
            raise CheckpointError(
                f"{directory / pickles[0]}: a pickle, which may run code when it is opened; convert it to "
                f"{WEIGHTS_FILE} where you trust it"
            )
        raise CheckpointError(f"{directory} has no {name}: {_what_to_give(directory)}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged ({first_line(error)}); export or download the model again") from error


def _what_to_give(directory: Path) -> str:
    if (directory / "model.onnx").is_file():
        return "give a folder that `cmbert export` wrote with --format hf"
    return "give a folder that `cmbert export` wrote with --format hf, or another with safetensors"


def model_from(state_dict: Mapping[str, torch.Tensor], config: ModelConfig, source: str) -> MaskedLanguageModel:
    """Build the fp32 model; `state_dict` may lack the decoder's weight, which is the embedding's."""
    weights = dict(state_dict)
    if EMBEDDING in weights:
        weights.setdefault(DECODER, weights[EMBEDDING])
    with torch.device("meta"), WithoutInitialisation():  # a damaged configuration may ask for more than there is memory
        expected = {name: weight.shape for name, weight in MaskedLanguageModel(config).state_dict().items()}
    found = {name: weight.shape for name, weight in weights.items()}
    if expected != found:
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        raise CheckpointError(
            f"{source} does not fit the model configuration; missing, unknown or of another shape: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
    model = MaskedLanguageModel(config)
    model.load_state_dict(weights)
    return model.eval()
