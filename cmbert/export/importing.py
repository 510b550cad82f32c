"""Another's model as a starting point: read, compared with what transformers makes of it, written as ours."""

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, first_line
from cmbert.export.gate import Comparison, prove
from cmbert.export.hf import CARD_FILE, check_export, export_folder
from cmbert.files.json_types import read_as
from cmbert.files.names import real
from cmbert.files.operations import hash_file, read_input
from cmbert.files.whole import json_text
from cmbert.model.config_json import CONFIG_FILE, model_config, read_json_object, runs_our_code
from cmbert.model.folder import WEIGHTS_FILE, model_from, read_weights
from cmbert.model.heads import DECODER, EMBEDDING
from cmbert.model.vocabulary_rows import DECODER_BIAS, with_rows
from cmbert.tokenizer import SETTINGS_FILE, load_tokenizer
from cmbert.vocabulary import Vocabulary

ORIGIN_FILE, START_FILE = "import.json", "start.toml"
HEAD = "head.dense.weight"
DROPOUTS = ("attention_dropout", "embedding_dropout", "mlp_dropout")
TEXTS = (
    "春天来了，河边的柳树发了芽，孩子们在草地上放风筝，老人坐在长椅上晒太阳。",
    "第十二条 合同自双方签字或者盖章之日起生效；法律、行政法规另有规定的，依照其规定。",
    "这家饭馆的味道不错，就是等位太久，下次会提前预约，人均80元左右，值得再来。",
    "研究人员表示，新方法把训练所需的数据量减少了一半，误差从3.5%降到了2.8%。",
    "The encoder reads 8,192 tokens at a time; its local layers attend to 64 tokens on each side.",
    "会议于2024年5月16日在杭州举行，来自20多个国家的500余名代表参加了会议。",
    "为什么天空是蓝色的？因为大气分子对短波长的光散射得更强，这种现象叫做瑞利散射。",
    "他把钥匙忘在了办公室，只好打电话给同事；同事说，门口的花盆底下还有一把备用的。",
)  # of different kinds: what is compared is whether two programs agree, not how well the model knows them

logger = logging.getLogger(__name__)


class Origin(TypedDict):
    """The contents of import.json: what a folder was imported from."""

    name: str
    licence: str | None
    """As its card says; None: it does not say."""
    weights: dict[str, str]
    """BLAKE2b of each file."""
    ids: int
    rows: int
    """Of the embedding here: the ids, and blank rows up to a multiple of 64."""
    rows_there: int


def import_model(folder: Path, output: Path) -> Comparison:
    """Write `output`, a model folder of ours with the weights and the tokenizer of `folder`, in Hugging Face's layout.

    `train.init_from` and `data.tokenizer` take it; a recipe may extend its start.toml. Before anything appears, the
    logits of the model read here, texts packed, are compared with those of transformers for `folder`, texts padded, and
    again for what is written. Returns what the last comparison found. Raises CheckpointError and ConfigError for a
    folder that is not of ModernBERT's family, lacks something, is damaged or has logits that differ; nothing is written
    then.
    """
    values = _read_values(folder)
    vocabulary = load_tokenizer(folder).vocabulary
    config = model_config(values, folder / CONFIG_FILE, rows=vocabulary.rows)
    check_export(config, folder, output, "hf")
    weights = _fitting_weights(folder, vocabulary)
    origin = _origin(folder, values, vocabulary, len(weights[EMBEDDING]))
    weights = with_rows(weights, vocabulary.size, vocabulary.rows)
    _say(values, origin)
    model = model_from(weights, config, str(folder))
    try:
        found = prove(folder, model, TEXTS, with_onnx=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot read it ({first_line(error)}); download it again"
        ) from error
    logger.info("%s: logits on %d tokens differ from transformers' by %s", folder, found.num_tokens, found)
    return export_folder(
        weights,
        config,
        folder,
        output,
        format="hf",
        texts=TEXTS,
        card=lambda measured: _card(folder, config, origin, measured),
        files={ORIGIN_FILE: json_text(origin, 2) + "\n", START_FILE: _start(config, output)},
    )


def read_origin(folder: Path) -> Origin | None:
    """Return what a model folder was imported from; None if it was not imported. Raises CheckpointError."""
    return read_as(folder / ORIGIN_FILE, Origin, error=CheckpointError, remedy="import the model again")


def licence_of(folder: Path) -> str | None:
    """Return the licence that the head of a model's card names."""
    card = (read_input(folder / CARD_FILE) or b"").decode("utf-8", "replace")
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license: *([^\s#]+)", head[1], re.MULTILINE) if head else None
    return named[1].strip("'\"") if named else None


def _read_values(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder that may be imported. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; download the model and name its folder")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} there: {_what_it_is(folder)}")
    values = read_json_object(folder / CONFIG_FILE)
    for name in (CONFIG_FILE, SETTINGS_FILE):
        settings = read_json_object(folder / name) if (folder / name).is_file() else {}
        if settings.get("auto_map") and not runs_our_code(folder):
            raise CheckpointError(
                f"{folder / name}: auto_map names code that came with the model, and that is not run; give a model "
                "that transformers reads by itself"
            )
    return values


def _what_it_is(folder: Path) -> str:
    """Say what a folder without config.json is, and what to do with it."""
    if any((place / "resolved.toml").is_file() for place in (folder, *folder.absolute().parents[:2])):
        return "a run of ours, which a recipe names as it is: train.init_from"
    if (folder / "latest_checkpointed_iteration.txt").is_file() or any(folder.glob("**/mp_rank_0*")):
        return "a checkpoint of Megatron; convert it to Hugging Face's layout first"
    return "no model folder; give one in Hugging Face's layout"


def _fitting_weights(folder: Path, vocabulary: Vocabulary) -> dict[str, torch.Tensor]:
    """Return a folder's weights under our names, without the decoder's, which are the embedding's."""
    weights = read_weights(folder)
    if HEAD not in weights or DECODER_BIAS not in weights or EMBEDDING not in weights:
        raise CheckpointError(
            f"{folder}: its weights have no masked-language-model head ({HEAD}, {DECODER_BIAS}): an encoder alone "
            "cannot be pretrained further; give the model that it was made of"
        )
    if DECODER in weights and not torch.equal(weights.pop(DECODER), weights[EMBEDDING]):
        raise CheckpointError(f"{folder}: {DECODER} is not the embedding: this code has them tied; take another model")
    if len(weights[EMBEDDING]) < vocabulary.size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {vocabulary.size:,} ids, the embedding {len(weights[EMBEDDING]):,} rows: it "
            "is another model's tokenizer; use its own"
        )
    return weights


def _origin(folder: Path, values: dict[str, Any], vocabulary: Vocabulary, rows_there: int) -> Origin:
    files = sorted(folder.glob(f"{Path(WEIGHTS_FILE).stem}*.safetensors"))
    return Origin(
        name=str(values.get("_name_or_path") or "") or real(folder).name,
        licence=licence_of(folder),
        weights={path.name: hash_file(path) for path in files},
        ids=vocabulary.size,
        rows=vocabulary.rows,
        rows_there=rows_there,
    )


def _say(values: dict[str, Any], origin: Origin) -> None:
    if origin["rows"] != origin["rows_there"]:
        said = "%s ids: the embedding has %s rows here, %s there; those without an id are never predicted"
        logger.info(said, *(f"{origin[key]:,}" for key in ("ids", "rows", "rows_there")))  # type: ignore[literal-required]
    if dropped := [f"{key} {values[key]:g}" for key in DROPOUTS if values.get(key)]:
        logger.info("trained there with %s; here there is no dropout", ", ".join(dropped))
    if origin["licence"] is None:
        logger.info("its card names no licence: find out before you pass anything on that is made of it")


def _start(config: ModelConfig, output: Path) -> str:
    """Return the part of a recipe that starts from `output`, for other recipes to extend."""
    tables = {
        "model": asdict(config), "data": {"tokenizer": str(output)}, "train": {"init_from": str(output)},
    }  # fmt: skip
    lines = [f"# A recipe that starts from this model begins with: extends = {json_text(str(output / START_FILE))}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json_text(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _card(folder: Path, config: ModelConfig, origin: Origin, measured: Comparison) -> str:
    licence = origin["licence"]
    lines = [
        *(["---", f"license: {licence}", "---", ""] if licence else []),
        f"# {origin['name']}, as a starting point for `cmbert`",
        "",
        f"The weights and the tokenizer of `{origin['name']}` (its files: `{ORIGIN_FILE}`), "
        f"{config.num_layers} layers x {config.hidden_size}, {origin['ids']:,} ids in {origin['rows']:,} rows of the "
        "embedding. Nothing was trained here: a recipe that extends "
        f"`{START_FILE}` starts from it.",
        "",
        f"Licence of these weights: {licence}, by the card of `{origin['name']}`." if licence else
        f"The card of `{origin['name']}` names no licence: find it out before you pass these weights on.",
        "",
        f"Compared with transformers on {measured.num_tokens:,} tokens, packed and padded: {measured}.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
