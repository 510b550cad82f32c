"""config.json of a model's folder: transformers' ModernBertConfig, written and read. Torch-free."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmbert.config.load import build_model
from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import read_as
from cmbert.files.operations import hash_file
from cmbert.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
CODE_FILE = Path(__file__).parents[1] / "export" / "hf_code" / "modeling_cmbert.py"
FORMER_CODE = ("38fa2d6e7c7c69368ae7c0f3a6bb6f18ef2e9c7916f675cbf299164791e30e81",)
"""Hashes of the file as earlier versions of this package wrote it."""

MODEL_TYPE, FORMER_TYPE = "modernbert", "cmbert"
"""What config.json says a model is; the second of an RMSNorm model as earlier versions of this package wrote it."""

AUTO_CLASSES = {  # no AutoConfig: config.json is ModernBertConfig's, so that nobody is asked whether to run code for it
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

FOR_TRAINING = {
    "initializer_cutoff_factor": 2.0,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
}
"""What is built in, too, and only training asks for: another's file may have other values."""

KIND, EVERY = "layer_types", "global_attn_every_n_layers"
GLOBAL, LOCAL = "full_attention", "sliding_attention"
OLDER_BASES = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}
"""Keys of the RoPE bases as transformers 4 spells them; 5 has them in rope_parameters."""


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
    """Return whether the code that a folder carries is what `cmbert export` puts there or once put, to the byte."""
    code = folder / CODE_FILE.name
    return [*folder.glob("*.py")] == [code] and hash_file(code) in (hash_file(CODE_FILE), *FORMER_CODE)


def config_json(config: ModelConfig, vocabulary: Vocabulary | None, *, head: str = "ForMaskedLM") -> dict[str, Any]:
    """Return the contents of config.json; `model_config` reads them back. Without a vocabulary it names no ids.

    head: the class of transformers that the weights are of, without its family's name: "Model" of the encoder alone.
    """
    identity: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": [f"ModernBert{head}"]}
    if config.norm == "rmsnorm":
        auto_map = {auto: f"{CODE_FILE.stem}.{name}" for auto, name in AUTO_CLASSES.items()}
        identity |= {"architectures": [f"Cmbert{head}"], "auto_map": auto_map, "norm": config.norm}
    bases = {GLOBAL: config.rope_base_global, LOCAL: config.rope_base_local}
    values = identity | {
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        **_ids(vocabulary),
        "norm_eps": config.norm_eps,
        EVERY: config.global_every,
        KIND: _layer_types(config.num_layers, config.global_every),
        "local_attention": config.local_window,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "initializer_range": config.init_std,
        "classifier_pooling": "mean",
        **STOCK,
        **FOR_TRAINING,
    }
    return spelled_for_all(values)


def spelled_for_all(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of ModernBERT that transformers 5 wrote with what other readers look for beside it.

    transformers 4 and text-embeddings-inference know only their own spelling of the RoPE bases, and the former takes
    ModernBERT's where it is missing, without a word. Old versions of vLLM want layer_norm_eps.
    """
    bases = {older: values["rope_parameters"][kind]["rope_theta"] for kind, older in OLDER_BASES.items()}
    return {**values, **bases, EVERY: global_every(values), "layer_norm_eps": values["norm_eps"]}


def label_keys(names: Iterable[str]) -> dict[str, Any]:
    """Return the keys of config.json that name a classifier's outputs, in order."""
    labels = list(enumerate(names))
    return {
        "id2label": {str(index): name for index, name in labels},
        "label2id": {name: index for index, name in labels},
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
            "norm": norm_of(values),
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


def norm_of(values: Mapping[str, Any]) -> str:
    """Return the norm that config.json names: "rmsnorm", or "layernorm" where it names none."""
    return "rmsnorm" if values.get("model_type") == FORMER_TYPE else values.get("norm", "layernorm")


def departures_of(values: Mapping[str, Any]) -> list[str]:
    """Return what config.json asks for that this code's model has not, one phrase each."""
    known = values.get("model_type") in (MODEL_TYPE, FORMER_TYPE)
    found = [] if known else [f"model_type is {values.get('model_type')!r}"]
    found += [f"{key} is {values[key]!r}" for key, value in STOCK.items() if values.get(key, value) != value]
    if norm_of(values) not in ("rmsnorm", "layernorm"):
        found.append(f"norm is {values['norm']!r}")
    if not found and global_every(values) is None:
        found.append(f"{KIND} are not every n-th layer global, or not those of {EVERY}")
    ropes = values.get("rope_parameters")
    tables = (
        {kind: table for kind, table in ropes.items() if isinstance(table, dict)} if isinstance(ropes, dict) else {}
    )
    kinds = dict.fromkeys(str(table.get("rope_type", "default")) for table in tables.values())
    found += [f"rope_type is {kind!r}" for kind in kinds if kind != "default"]
    for kind, older in OLDER_BASES.items():
        base = tables.get(kind, {}).get("rope_theta")
        if base is not None and older in values and values[older] != base:
            found.append(f"{older} is {values[older]!r}, and rope_parameters say {base!r}")
    eps = values.get("norm_eps")
    if eps is not None and "layer_norm_eps" in values and values["layer_norm_eps"] != eps:
        found.append(f"layer_norm_eps is {values['layer_norm_eps']!r}, and norm_eps {eps!r}")
    return found


def global_every(values: Mapping[str, Any]) -> int | None:
    """Return n if layers 0, n, 2n, ... attend globally and no others, by all that config.json says, else None."""
    kinds, every = values.get(KIND), values.get(EVERY)
    if not isinstance(kinds, list):
        return values.get(EVERY, 3)
    if every is None:
        others = [index for index, kind in enumerate(kinds) if index and kind == GLOBAL]
        every = others[0] if others else len(kinds)
    is_number = isinstance(every, int) and every > 0
    return every if is_number and kinds == _layer_types(len(kinds), every) else None


def _layer_types(num_layers: int, every: int) -> list[str]:
    return [LOCAL if index % every else GLOBAL for index in range(num_layers)]


def _rope_base(values: Mapping[str, Any], kind: str) -> float:
    if "rope_parameters" in values:
        return values["rope_parameters"][kind]["rope_theta"]
    return values[OLDER_BASES[kind]]


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
