"""config.json of a model's folder: transformers' ModernBertConfig, written and read. Torch-free."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cmbert.config.load import build_model
from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import read_as
from cmbert.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
CODE_FILE = Path(__file__).parents[1] / "export" / "hf_code" / "modeling_cmbert.py"
NORMS: dict[str, Literal["rmsnorm", "layernorm"]] = {"cmbert": "rmsnorm", "modernbert": "layernorm"}  # by model_type

AUTO_CLASSES = {
    "AutoConfig": "CmbertConfig",
    "AutoModel": "CmbertModel",
    "AutoModelForMaskedLM": "CmbertForMaskedLM",
    "AutoModelForSequenceClassification": "CmbertForSequenceClassification",
    "AutoModelForTokenClassification": "CmbertForTokenClassification",
    "AutoModelForQuestionAnswering": "CmbertForQuestionAnswering",
    "AutoModelForMultipleChoice": "CmbertForMultipleChoice",
}

STOCK = {
    "hidden_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
"""Of ModernBertConfig, what this code has built in; what a file leaves out has these values in transformers, too."""

KIND = "layer_types"
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def is_model_folder(path: Path) -> bool:
    """Return whether `path` is a model folder, not a run or a checkpoint."""
    return (path / CONFIG_FILE).is_file()


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object of a model's folder; CheckpointError if the file holds none."""
    values = read_as(path, dict[str, Any], error=CheckpointError, remedy="export or download the model again")
    if values is None:
        raise CheckpointError(f"{path}: no such file; export or download the model again")
    return values


def runs_our_code(folder: Path) -> bool:
    """Return whether the code that a folder carries is the file that `cmbert export` puts there, to the byte."""
    code = folder / CODE_FILE.name
    return code.is_file() and [*folder.glob("*.py")] == [code] and code.read_bytes() == CODE_FILE.read_bytes()


def config_json(config: ModelConfig, vocabulary: Vocabulary | None, *, head: str = "ForMaskedLM") -> dict[str, Any]:
    """Return the contents of config.json; `model_config` reads them back. Without a vocabulary it names no ids.

    head: the class of transformers that the weights are of, without its family's name: "Model" of the encoder alone.
    """
    if config.norm == "rmsnorm":
        identity = {
            "model_type": "cmbert",
            "architectures": [f"Cmbert{head}"],
            "auto_map": {auto: f"{CODE_FILE.stem}.{name}" for auto, name in AUTO_CLASSES.items()},
        }
    else:
        identity = {"model_type": "modernbert", "architectures": [f"ModernBert{head}"]}
    bases = {GLOBAL: config.rope_base_global, LOCAL: config.rope_base_local}
    return identity | {
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        **_ids(vocabulary),
        "norm_eps": config.norm_eps,
        "global_attn_every_n_layers": config.global_every,
        KIND: _layer_types(config.num_layers, config.global_every),
        "local_attention": config.local_window,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        "classifier_pooling": "mean",
    }


def model_config(values: Mapping[str, Any], where: Path, *, rows: int | None = None) -> ModelConfig:
    """Return the model that config.json at `where` describes, of ours or another's of ModernBERT's family.

    rows: of the embedding, if they are to be others than its vocab_size. RoPE bases are read in the spellings of
    transformers 4 (global_rope_theta) and 5 (rope_parameters). Raises CheckpointError for what this code cannot be.
    """
    if departures := departures_of(values):
        raise CheckpointError(f"{where}: {'; '.join(departures)}: not a model of this family; take another")
    try:
        table = {
            "num_layers": values["num_hidden_layers"],
            "hidden_size": values["hidden_size"],
            "num_heads": values["num_attention_heads"],
            "intermediate_size": values["intermediate_size"],
            "vocab_size": rows or values["vocab_size"],
            "norm": NORMS[values["model_type"]],
            "norm_eps": values.get("norm_eps", 1e-5),
            "global_every": global_every(values),
            "local_window": values["local_attention"],
            "rope_base_global": _rope_base(values, GLOBAL),
            "rope_base_local": _rope_base(values, LOCAL),
            "max_length": values["max_position_embeddings"],
            "init_std": values.get("initializer_range", 0.02),
        }
    except (KeyError, TypeError) as error:  # the second: a value where there should be an object, or the reverse
        raise CheckpointError(f"{where}: {error} is missing or unknown; export or download the model again") from error
    try:
        return build_model(table, str(where))
    except ConfigError as error:
        raise CheckpointError(f"{error}; give a folder of another model") from error


def departures_of(values: Mapping[str, Any]) -> list[str]:
    """Return what config.json asks for that this code's model has not, one phrase each."""
    found = [] if values.get("model_type") in list(NORMS) else [f"model_type is {values.get('model_type')!r}"]
    found += [f"{key} is {values[key]!r}" for key, value in STOCK.items() if values.get(key, value) != value]
    if not found and global_every(values) is None:
        found.append(f"{KIND} are not every n-th layer global")
    ropes = values.get("rope_parameters")
    tables = [table for table in ropes.values() if isinstance(table, dict)] if isinstance(ropes, dict) else []
    kinds = dict.fromkeys(str(table.get("rope_type", "default")) for table in tables)
    return found + [f"rope_type is {kind!r}" for kind in kinds if kind != "default"]


def global_every(values: Mapping[str, Any]) -> int | None:
    """Return n if layers 0, n, 2n, ... attend globally and no others, else None."""
    kinds = values.get(KIND)
    if not isinstance(kinds, list):
        return values.get("global_attn_every_n_layers", 3)
    others = [index for index, kind in enumerate(kinds) if index and kind == GLOBAL]
    every = others[0] if others else len(kinds)
    return every if kinds == _layer_types(len(kinds), every) else None


def _layer_types(num_layers: int, every: int) -> list[str]:
    return [LOCAL if index % every else GLOBAL for index in range(num_layers)]


def _rope_base(values: Mapping[str, Any], kind: str) -> float:
    if "rope_parameters" in values:
        return values["rope_parameters"][kind]["rope_theta"]
    return values[{GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}[kind]]


def _ids(vocabulary: Vocabulary | None) -> dict[str, int]:
    if vocabulary is None:
        return {}
    return {
        "pad_token_id": vocabulary.pad_id,
        "cls_token_id": vocabulary.cls_id,
        "sep_token_id": vocabulary.sep_id,
        "bos_token_id": vocabulary.cls_id,
        "eos_token_id": vocabulary.sep_id,
    }


def stock_config(config: ModelConfig) -> dict[str, Any]:
    """Return the keyword arguments of transformers' ModernBertConfig of the shape of `config`, LayerNorm included."""
    values = config_json(dataclasses.replace(config, norm="layernorm"), None)
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return {key: value for key, value in (values | ids).items() if key not in ("model_type", "dtype")}
