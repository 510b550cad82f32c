"""Exported model folders: writing them for transformers, sentence-transformers and onnxruntime, and reading them back
without any of these.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmbert.config.load import build_model
from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError, InputError, first_line
from cmbert.export.gate import Comparison, prove
from cmbert.export.onnx import require_onnx
from cmbert.files.folders import building
from cmbert.files.json_types import read_as
from cmbert.files.whole import write_json
from cmbert.model.heads import DECODER, EMBEDDING, MaskedLanguageModel
from cmbert.model.init import WithoutInitialisation
from cmbert.tokenizer import CLS_ID, PAD_ID, SEP_ID, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
CODE_FILE = Path(__file__).parent / "hf_code" / "modeling_cmbert.py"

AUTO_CLASSES = {
    "AutoConfig": "CmbertConfig",
    "AutoModel": "CmbertModel",
    "AutoModelForMaskedLM": "CmbertForMaskedLM",
    "AutoModelForSequenceClassification": "CmbertForSequenceClassification",
    "AutoModelForTokenClassification": "CmbertForTokenClassification",
    "AutoModelForQuestionAnswering": "CmbertForQuestionAnswering",
    "AutoModelForMultipleChoice": "CmbertForMultipleChoice",
}


Format = Literal["hf", "hf-modernbert", "onnx"]


def check_export(config: ModelConfig, tokenizer_directory: Path, output: Path, format: Format) -> None:
    """Raise what `export_folder` raises of its arguments, before any weights are read.

    ConfigError if the format cannot hold the model, its packages are missing or the tokenizer does not fit the model,
    CheckpointError if `output` exists.
    """
    if format == "hf-modernbert" and config.norm != "layernorm":
        raise ConfigError(
            f"hf-modernbert cannot hold model.norm = {config.norm!r}: stock ModernBERT has LayerNorm. "
            "Export with format hf, or train with model.norm = 'layernorm'"
        )
    if format == "onnx":
        require_onnx()
    if output.exists():
        raise CheckpointError(f"{output} exists: remove it or export to another folder")
    load_tokenizer(tokenizer_directory, vocab_size=config.vocab_size)
    for name in TOKENIZER_FILES:
        if not (tokenizer_directory / name).is_file():
            raise ConfigError(f"{tokenizer_directory} has no {name}: give the directory that train-tokenizer wrote")


def export_folder(
    state_dict: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer_directory: Path,
    output: Path,
    *,
    format: Format,
    texts: Sequence[str],
    card: Callable[[Comparison], str],
) -> Comparison:
    """Write `output`, a folder for transformers and sentence-transformers, or with model.onnx in place of the weights.

    A LayerNorm model is stock ModernBERT; `format` "hf-modernbert" insists on it. An RMSNorm model carries a small code
    file: loading it needs `trust_remote_code=True`, but not this package. `state_dict` is MaskedLanguageModel's in any
    float dtype, with or without the tied decoder.weight; the folder holds fp32. `card` makes the README from what is
    returned.

    Before the folder appears it is loaded back through transformers, and its logits on `texts` are compared with ours;
    those of model.onnx, too. Returns what the comparison found. Raises as `check_export` does; InputError without
    texts, CheckpointError if the weights do not fit `config`, or the logits differ.
    """
    check_export(config, tokenizer_directory, output, format)
    if not texts:
        raise InputError("export needs at least one text to compare logits on")
    model = _model_from(state_dict, config, "the checkpoint")
    with building(output) as aside:
        _write(aside, model, tokenizer_directory)
        measured = prove(aside, model, texts, with_onnx=format == "onnx")
        if format == "onnx":
            (aside / WEIGHTS_FILE).unlink()
        else:
            _write_sentence_transformers(aside, config)
        (aside / CARD_FILE).write_text(card(measured), encoding="utf-8")
    return measured


def load_folder(directory: Path) -> tuple[MaskedLanguageModel, ModelConfig]:
    """Read our own model, fp32 on the CPU, from a folder that `export_folder` wrote; CheckpointError if it is none."""
    config = read_config(directory)
    if not (directory / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{directory} has no {WEIGHTS_FILE}: give a folder that `cmbert export` wrote with --format hf"
        )
    try:
        weights = load_file(directory / WEIGHTS_FILE)
    except (SafetensorError, ValueError) as error:
        path = directory / WEIGHTS_FILE
        raise CheckpointError(f"{path}: damaged ({first_line(error)}); export or download the model again") from error
    return _model_from(weights, config, str(directory)), config


def read_config(directory: Path) -> ModelConfig:
    """Read the configuration of a folder that `export_folder` wrote; CheckpointError if it is none."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} has no config.json: give a folder written by `cmbert export`")
    return _model_config(read_json_object(directory / "config.json"), directory)


def is_export(directory: Path) -> bool:
    """Return whether `export_folder` wrote the folder, and its tokenizer is there."""
    return all((directory / name).is_file() for name in ("config.json", TOKENIZER_FILES[0])) and is_ours(directory)


def is_ours(directory: Path) -> bool:
    """Return whether config.json describes a model of ours, with special ids as ours and nothing that we do not have.

    Another's ModernBERT may have biases, or other layers global; transformers reads that. Raises CheckpointError if
    config.json is no JSON object.
    """
    path = directory / "config.json"
    values = read_json_object(path) if path.is_file() else {}
    architectures = values.get("architectures")
    if architectures not in (["CmbertForMaskedLM"], ["ModernBertForMaskedLM"]):
        return False
    special = [values.get(f"{name}_token_id") for name in ("pad", "cls", "sep")]
    if special != [PAD_ID, CLS_ID, SEP_ID] or architectures == ["CmbertForMaskedLM"]:
        return special == [PAD_ID, CLS_ID, SEP_ID]
    try:
        written = _config_json(_model_config(values, directory))
    except CheckpointError:
        return False
    stock = {"hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False, "decoder_bias": True}
    stock |= {"attention_bias": False, "mlp_bias": False, "classifier_bias": False}
    return all(values.get(key, value) == value for key, value in (written | stock).items() if key != "dtype")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object of a model's folder; CheckpointError if the file holds none."""
    values = read_as(path, dict[str, Any], error=CheckpointError, remedy="export or download the model again")
    if values is None:
        raise CheckpointError(f"{path}: no such file; export or download the model again")
    return values


def modernbert_config(config: ModelConfig) -> Any:
    """Return transformers' configuration of stock ModernBERT, LayerNorm included, of the shape of `config`."""
    from transformers import ModernBertConfig

    values = _config_json(dataclasses.replace(config, norm="layernorm"))
    return ModernBertConfig(**{key: value for key, value in values.items() if key not in ("model_type", "dtype")})


def _model_from(state_dict: Mapping[str, torch.Tensor], config: ModelConfig, source: str) -> MaskedLanguageModel:
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


def _write(folder: Path, model: MaskedLanguageModel, tokenizer_directory: Path) -> None:
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_directory / name, folder / name)
    # A tokenizer serves models of several lengths; in a folder it cuts texts where this model ends.
    settings = read_json_object(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": model.config.max_length})
    weights = {name: weight for name, weight in model.state_dict().items() if name != DECODER}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / "config.json", _config_json(model.config))
    if model.config.norm == "rmsnorm":
        shutil.copyfile(CODE_FILE, folder / CODE_FILE.name)


def _write_sentence_transformers(folder: Path, config: ModelConfig) -> None:
    """Make `folder` a sentence-transformers model: the mean of the final hidden states, [CLS] and [SEP] included.

    In the layout of its version 2 (sbert.net, "Structure of Sentence Transformer Models"), which 6.2 reads, too.
    """
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"))
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    similarity: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", similarity)


def _config_json(config: ModelConfig) -> dict[str, Any]:
    """ModernBertConfig's keys; `_model_config` reads them back."""
    if config.norm == "rmsnorm":
        identity = {
            "model_type": "cmbert",
            "architectures": ["CmbertForMaskedLM"],
            "auto_map": {auto: f"{CODE_FILE.stem}.{name}" for auto, name in AUTO_CLASSES.items()},
        }
    else:
        identity = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}
    global_layers = range(0, config.num_layers, config.global_every)
    bases = {"full_attention": config.rope_base_global, "sliding_attention": config.rope_base_local}
    return identity | {
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        "pad_token_id": PAD_ID,
        "cls_token_id": CLS_ID,
        "sep_token_id": SEP_ID,
        "bos_token_id": CLS_ID,
        "eos_token_id": SEP_ID,
        "norm_eps": config.norm_eps,
        "global_attn_every_n_layers": config.global_every,
        "layer_types": [
            "full_attention" if index in global_layers else "sliding_attention" for index in range(config.num_layers)
        ],
        "local_attention": config.local_window,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        "classifier_pooling": "mean",
    }


def _model_config(values: Mapping[str, Any], directory: Path) -> ModelConfig:
    norms: dict[str, Literal["rmsnorm", "layernorm"]] = {"cmbert": "rmsnorm", "modernbert": "layernorm"}
    where = directory / "config.json"
    try:
        table = {
            "num_layers": values["num_hidden_layers"],
            "hidden_size": values["hidden_size"],
            "num_heads": values["num_attention_heads"],
            "intermediate_size": values["intermediate_size"],
            "vocab_size": values["vocab_size"],
            "norm": norms[values["model_type"]],
            "norm_eps": values["norm_eps"],
            "global_every": values["global_attn_every_n_layers"],
            "local_window": values["local_attention"],
            "rope_base_global": values["rope_parameters"]["full_attention"]["rope_theta"],
            "rope_base_local": values["rope_parameters"]["sliding_attention"]["rope_theta"],
            "max_length": values["max_position_embeddings"],
            "init_std": values["initializer_range"],
        }
    except (KeyError, TypeError) as error:  # the second: a value where there should be an object, or the reverse
        raise CheckpointError(
            f"{where}: {error} is missing or unknown; give a folder written by `cmbert export`"
        ) from error
    try:
        return build_model(table, str(where))
    except ConfigError as error:
        raise CheckpointError(f"{error}; give a folder written by `cmbert export`") from error
