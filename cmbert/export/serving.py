"""Model folders as model.onnx for servers: sentence vectors, classifiers, masked language models, each behind a gate.

What a folder holds decides: its modules.json, or the architecture that its config.json names.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cmbert.config.parameters import count_parameters
from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, first_line
from cmbert.export.gate import Comparison
from cmbert.export.hf import CARD_FILE, TOKENIZER_FILES, check_export, export_folder, is_ours
from cmbert.export.importing import TEXTS
from cmbert.export.onnx import Logits, Pooling, SentenceVectors, write_program
from cmbert.export.serving_card import Use, render_card
from cmbert.export.serving_gate import Proof, prove_program
from cmbert.files.folders import building
from cmbert.files.json_types import read_as
from cmbert.files.whole import write_json
from cmbert.memory import require_memory
from cmbert.model.config_json import (
    CODE_FILE,
    CONFIG_FILE,
    is_model_folder,
    label_keys,
    model_config,
    read_json_object,
    runs_our_code,
)
from cmbert.model.cost import FP32_BYTES
from cmbert.model.folder import load_folder, read_config, read_weights
from cmbert.tokenizer import SETTINGS_FILE, load_tokenizer

MODULES_FILE = "modules.json"
LENGTHS = (("sentence_bert_config.json", "max_seq_length"), (SETTINGS_FILE, "model_max_length"))
"""Where sentence-transformers until version 5, and since then, keeps after how many tokens texts are cut."""
NUM_COPIES = 4
"""Of the weights in fp32: the model, one in fp64 beside it (two), and onnxruntime's."""
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",  # as sentence-transformers wrote it until version 5
    "pooling_mode_cls_token": "cls",
}
HEADS: dict[str, Literal["texts", "tokens"]] = {
    "ForSequenceClassification": "texts",
    "ForTokenClassification": "tokens",
}
WHAT_IS_TAKEN = (
    "--format onnx takes a run, a checkpoint, an exported folder of ours, the model of `cmbert embed-train` and "
    "classifiers (ForSequenceClassification, ForTokenClassification)"
)


@dataclass(frozen=True)
class ServedModel:
    """A folder that is to be served, read but not loaded."""

    folder: Path
    """Where its config.json, weights and tokenizer lie."""
    config: ModelConfig
    head: Literal["vectors", "texts", "tokens"]
    """One vector a text, labels of a text, or labels of each token."""
    pooling: Pooling
    """Of vectors; a classifier's is its own."""
    max_length: int
    """Tokens after which texts are cut."""


def is_served(path: Path) -> bool:
    """Return whether a path is a folder of transformers or sentence-transformers, no run and no checkpoint."""
    return is_model_folder(path) or (path / MODULES_FILE).is_file()


def export_served(path: Path, output: Path) -> Comparison:
    """Write `output`: model.onnx of a model folder, its tokenizer, config.json and a card.

    Returns what the gate found. Raises CheckpointError for a folder of something else, without weights or damaged, and
    when model.onnx differs from the model; ConfigError when packages or memory are missing.
    """
    if is_ours(path):
        return _export_masked_language_model(path, output)
    served = read_served(path)
    check_export(served.config, served.folder, output, "onnx")
    _require_memory(path, served.config)
    network = _load(served)
    program = SentenceVectors(network, served.pooling) if served.head == "vectors" else Logits(network)
    with building(output) as aside:
        _copy(served, network, aside)
        write_program(program, aside)
        proof = prove_program(program, aside, TEXTS, per_token=served.head == "tokens")
        labels = () if served.head == "vectors" else tuple(network.config.id2label.values())
        settings = read_json_object(aside / SETTINGS_FILE)
        use = Use(
            served.head,
            served.config,
            served.max_length,
            load_tokenizer(aside),
            served.pooling,
            labels,
            network.config.problem_type,
            settings.get("split_special_tokens") is True,
        )
        (aside / CARD_FILE).write_text(render_card(path, use, proof), encoding="utf-8")
    return proof.comparison


def read_served(path: Path) -> ServedModel:
    """Read what a model folder holds. Raises CheckpointError if it is nothing that can be served."""
    head: Literal["vectors", "texts", "tokens"] | None
    if (path / MODULES_FILE).is_file():
        folder, pooling = _read_modules(path)
        values, head = read_json_object(folder / CONFIG_FILE), "vectors"
    else:
        folder, pooling = path, "mean"
        values = read_json_object(path / CONFIG_FILE)
        named = values.get("architectures")
        names = [str(name) for name in named] if isinstance(named, list) else []
        head = next((HEADS[end] for name in names for end in HEADS if name.endswith(end)), None)
        if head is None:
            said = ", ".join(names) or "no architectures"
            raise CheckpointError(f"{path / CONFIG_FILE}: {said}: {WHAT_IS_TAKEN}")
    if values.get("auto_map") and not runs_our_code(folder):
        raise CheckpointError(f"{folder / CONFIG_FILE}: auto_map names code that is not ours, and that is not run")
    config = model_config(values, folder / CONFIG_FILE)
    return ServedModel(folder, config, head, pooling, min([config.max_length, *_cuts(path), *_cuts(folder)]))


def _read_modules(path: Path) -> tuple[Path, Pooling]:
    """Return where a folder of sentence-transformers has its encoder, and how it pools. Raises CheckpointError."""
    where = path / MODULES_FILE
    modules = read_as(where, list[dict[str, Any]], error=CheckpointError, remedy="write the model again")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules or []]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        found = ", ".join(kinds) or "nothing"
        raise CheckpointError(f"{where}: {found}: only Transformer, Pooling and Normalize can go into model.onnx")
    places = [path / str((modules or [])[index].get("path", "")) for index in (0, 1)]
    settings = read_json_object(places[1] / CONFIG_FILE)
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named or []
    modes = modes or [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        said = ", ".join(map(str, modes)) or "none"
        raise CheckpointError(f"{places[1] / CONFIG_FILE}: pooling {said}: model.onnx can have mean or cls")
    return places[0], POOLINGS[modes[0]]


def _cuts(path: Path) -> list[int]:
    """Return after how many tokens a folder says that texts are cut."""
    found = [read_json_object(path / name).get(key) for name, key in LENGTHS if (path / name).is_file()]
    return [int(length) for length in found if isinstance(length, int | float) and length > 0]


def _require_memory(path: Path, config: ModelConfig) -> None:
    needed = NUM_COPIES * FP32_BYTES * count_parameters(config).total
    require_memory(f"exporting {path}", needed, torch.device("cpu"), "export it on a machine with more memory")


def _load(served: ServedModel) -> Any:
    """Return transformers' model of a folder, fp32. Raises CheckpointError if the weights are not all there."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
    from transformers.utils import logging as transformers_logging

    classes = {
        "vectors": AutoModel,
        "texts": AutoModelForSequenceClassification,
        "tokens": AutoModelForTokenClassification,
    }
    folder = served.folder
    read_weights(folder)  # damaged ones are named there
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it warns of is looked at here
    try:
        model, found = classes[served.head].from_pretrained(
            folder,
            trust_remote_code=runs_our_code(folder),
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot read it ({first_line(error)})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])})
    if wrong:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json; missing, unknown or of another shape: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
    return model.eval()


def _copy(served: ServedModel, network: Any, aside: Path) -> None:
    """Put tokenizer and config.json beside model.onnx; the code, too, for readers of config.json that ask for it."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(served.folder / name, aside / name)
    settings = read_json_object(aside / SETTINGS_FILE)
    write_json(aside / SETTINGS_FILE, settings | {"model_max_length": served.max_length})
    values = read_json_object(served.folder / CONFIG_FILE)
    if served.head != "vectors":  # transformers writes no names that are its own, LABEL_0 and LABEL_1
        values |= label_keys(name for _, name in sorted(network.config.id2label.items()))
    write_json(aside / CONFIG_FILE, values)
    if (served.folder / CODE_FILE.name).is_file():
        shutil.copyfile(served.folder / CODE_FILE.name, aside / CODE_FILE.name)


def _export_masked_language_model(path: Path, output: Path) -> Comparison:
    """Export a folder of ours with a masked-language-model head again, its logits as model.onnx."""
    config = read_config(path)
    check_export(config, path, output, "onnx")
    _require_memory(path, config)
    model, _ = load_folder(path)
    use = Use("mask", config, config.max_length, load_tokenizer(path))
    return export_folder(
        model.state_dict(),
        config,
        path,
        output,
        format="onnx",
        texts=TEXTS,
        card=lambda measured: render_card(path, use, Proof(measured)),
    )
