"""Exported model folders: writing them for transformers, sentence-transformers and onnxruntime, and reading them back
without any of these.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.export.gate import Comparison, prove
from cmbert.export.onnx import require_onnx
from cmbert.files.folders import building
from cmbert.files.whole import write_json
from cmbert.model.config_json import CODE_FILE, CONFIG_FILE, config_json, model_config, read_json_object, stock_config
from cmbert.model.folder import WEIGHTS_FILE, model_from, rows_for_file
from cmbert.model.heads import DECODER, MaskedLanguageModel
from cmbert.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, load_tokenizer

TOKENIZER_FILES = (TOKENIZER_FILE, SETTINGS_FILE)
CARD_FILE = "README.md"

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
    files: Mapping[str, str] | None = None,
) -> Comparison:
    """Write `output`, a folder for transformers and sentence-transformers, or with model.onnx in place of the weights.

    A LayerNorm model is stock ModernBERT; `format` "hf-modernbert" insists on it. An RMSNorm model carries a small code
    file: loading it needs `trust_remote_code=True`, but not this package. `state_dict` is MaskedLanguageModel's in any
    float dtype, with or without the tied decoder.weight; the folder holds fp32. `card` makes the README from what is
    returned. files: more files of the folder, texts by their names.

    Before the folder appears it is loaded back through transformers, and its logits on `texts` are compared with ours;
    those of model.onnx, too. Returns what the comparison found. Raises as `check_export` does; InputError without
    texts, CheckpointError if the weights do not fit `config`, or the logits differ.
    """
    check_export(config, tokenizer_directory, output, format)
    if not texts:
        raise InputError("export needs at least one text to compare logits on")
    model = model_from(state_dict, config, "the checkpoint")
    with building(output) as aside:
        _write(aside, model, tokenizer_directory)
        measured = prove(aside, model, texts, with_onnx=format == "onnx")
        if format == "onnx":
            (aside / WEIGHTS_FILE).unlink()
        else:
            _write_sentence_transformers(aside, config)
        (aside / CARD_FILE).write_text(card(measured), encoding="utf-8")
        for name, text in (files or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
    return measured


def is_export(directory: Path) -> bool:
    """Return whether `export_folder` wrote the folder, and its tokenizer is there."""
    return all((directory / name).is_file() for name in (CONFIG_FILE, TOKENIZER_FILES[0])) and is_ours(directory)


def is_ours(directory: Path) -> bool:
    """Return whether config.json describes a model with a masked-language-model head that this code can be.

    Another's ModernBERT may have biases, or other layers global; transformers reads that. Raises CheckpointError if
    config.json is no JSON object.
    """
    path = directory / CONFIG_FILE
    values = read_json_object(path) if path.is_file() else {}
    architectures = values.get("architectures")
    if architectures not in (["CmbertForMaskedLM"], ["ModernBertForMaskedLM"]):
        return False
    has_ids = all(isinstance(values.get(f"{name}_token_id"), int) for name in ("pad", "cls", "sep"))
    if not has_ids or architectures == ["CmbertForMaskedLM"]:
        return has_ids
    try:
        written = config_json(model_config(values, path), None)
    except CheckpointError:
        return False
    return all(values.get(key, value) == value for key, value in written.items() if key != "dtype")


def modernbert_config(config: ModelConfig) -> Any:
    """Return transformers' configuration of stock ModernBERT, LayerNorm included, of the shape of `config`."""
    from transformers import ModernBertConfig

    return ModernBertConfig(**stock_config(config))


def _write(folder: Path, model: MaskedLanguageModel, tokenizer_directory: Path) -> None:
    weights = {name: weight for name, weight in model.state_dict().items() if name != DECODER}
    write_model_files(folder, weights, model.config, tokenizer_directory)


def write_model_files(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer_directory: Path,
    *,
    head: str = "ForMaskedLM",
    keys: dict[str, Any] | None = None,
    tokenizer_settings: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, config.json, tokenizer and, for RMSNorm, the code of a model to a folder that is there.

    head: as of `config_json`; `weights` have the names that this class has. keys: more of config.json.
    tokenizer_settings: of tokenizer_config.json. A tokenizer serves models of several lengths; in a folder it cuts
    texts where this model ends, unless these say otherwise.
    """
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_directory / name, folder / name)
    # In transformers 4 a tokenizer adds token_type_ids unasked, and ModernBERT refuses them.
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    settings = {"model_max_length": config.max_length, **names, **(tokenizer_settings or {})}
    write_json(folder / SETTINGS_FILE, read_json_object(folder / SETTINGS_FILE) | settings)
    save_file(rows_for_file(weights, config.norm), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    vocabulary = load_tokenizer(tokenizer_directory).vocabulary
    write_json(folder / CONFIG_FILE, config_json(config, vocabulary, head=head) | (keys or {}))
    if config.norm == "rmsnorm":
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
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": False,  # text-embeddings-inference asks for either
        "pooling_mode_mean_tokens": True,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    similarity: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", similarity)
