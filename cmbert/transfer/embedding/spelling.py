"""A folder of sentence-transformers in the spellings of all who read it, not of the version alone that wrote it.

Read in their sources: text-embeddings-inference 1.9.3 (router/src/lib.rs) ends where sentence_bert_config.json has no
max_seq_length or 1_Pooling none of the two modes; vLLM pools [CLS] where modules.json has no type of this name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmbert.errors import CheckpointError
from cmbert.export.serving import MODULES_FILE
from cmbert.files.json_types import read_as
from cmbert.files.whole import write_json
from cmbert.model.config_json import CONFIG_FILE, MODEL_TYPE, departures_of, read_json_object, spelled_for_all
from cmbert.tokenizer import SETTINGS_FILE

LENGTH_FILE = "sentence_bert_config.json"
OLDER_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}


def spell_for_all(folder: Path, max_length: int | None) -> None:
    """Add to a folder what readers other than sentence-transformers 6 and transformers 5 look for.

    max_length: tokens after which texts are cut; None: nobody says.
    """
    _change(folder / CONFIG_FILE, _config)
    _change(folder / SETTINGS_FILE, _tokenizer)
    if max_length is not None:
        _change(folder / LENGTH_FILE, lambda values: {**values, "max_seq_length": max_length})
    path = folder / MODULES_FILE
    modules = read_as(path, list[dict[str, Any]], error=CheckpointError, remedy="write the model again") or []
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind in ("Transformer", "Pooling", "Normalize"):
            module["type"] = f"sentence_transformers.models.{kind}"
        if kind == "Pooling":
            _change(folder / module["path"] / CONFIG_FILE, _pooling)
    write_json(path, modules)


def _change(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if path.is_file():  # some models keep it in a folder of their first module
        write_json(path, change(read_json_object(path)))


def _config(values: dict[str, Any]) -> dict[str, Any]:
    is_ours = values.get("model_type") == MODEL_TYPE and not departures_of(values)
    return spelled_for_all(values) if is_ours else values


def _tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 has a name for its class that 4 does not know."""
    is_new = values.get("tokenizer_class") == "TokenizersBackend"
    return {**values, "tokenizer_class": "PreTrainedTokenizerFast"} if is_new else values


def _pooling(values: dict[str, Any]) -> dict[str, Any]:
    """The modes come first: vLLM takes the first value that is true."""
    mode = values.get("pooling_mode")
    older = {key: mode == name for name, key in OLDER_MODES.items()} if mode in OLDER_MODES else {}
    width = {"word_embedding_dimension": values["embedding_dimension"]} if "embedding_dimension" in values else {}
    return {**width, **older, **values}
