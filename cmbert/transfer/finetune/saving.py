"""`cmbert finetune --save`: the model of the best seed as a folder of transformers, proved before it appears."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

from cmbert.errors import ConfigError
from cmbert.export.hf import write_model_files
from cmbert.files.folders import building
from cmbert.files.json_types import read_record
from cmbert.files.whole import write_json, write_text
from cmbert.model.config_json import label_keys
from cmbert.model.encoder import Encoder
from cmbert.transfer.finetune.agreement import prove_answers
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.finetune.identity import IDENTITY_FILE
from cmbert.transfer.finetune.keeping import Keeper
from cmbert.transfer.finetune.task_model import DROPOUT, HEADS, TaskModel
from cmbert.transfer.finetune.trial import Data, TrialResult, run_trial
from cmbert.transfer.finetune.tuned_card import render_card
from cmbert.transfer.start_card import CARD_FILE
from cmbert.transfer.tasks.task import Task

logger = logging.getLogger(__name__)

RECORD_FILE, RESULT_FILE = "finetune.json", "result.json"


def check_save(backbone: Backbone, model_name: str, identity: dict[str, Any], save: Path) -> None:
    """Raise ConfigError if a tuned `backbone` cannot be saved in `save`, before anything is trained."""
    if not isinstance(backbone.encoder, Encoder):
        raise ConfigError(
            f"--save {save}: {model_name} is another's encoder, whose tuned form is not stock ModernBERT; "
            "`cmbert import` it first if it is a ModernBERT, else leave --save out"
        )
    if save.exists():
        record = read_record(save / RECORD_FILE, "identity") if (save / RECORD_FILE).is_file() else {}
        if record.get("identity") != json.loads(json.dumps(identity)):  # as a file has it: lists, no tuples
            raise ConfigError(f"--save {save}: exists and holds something else; remove it or name another folder")


def save_tuned(
    backbone: Backbone,
    task: Task,
    data: Data,
    best: TrialResult,
    place: Path,
    save: Path,
    *,
    start: Path | None,
) -> None:
    """Write the model of the trial `best` to `save`, once transformers gives our answers to the dev split.

    place: the folder of its results, where the weights were kept; if they are not there, the trial is trained again.
    start: where the model that was tuned lies. Raises CheckpointError if the answers differ, ConfigError if `save`
    holds the model of another trial.
    """
    if save.exists():
        saved = read_record(save / RECORD_FILE, "trial")["trial"]
        if saved != best.name:
            raise ConfigError(f"--save {save}: holds {saved}, now {best.name} is best on dev; remove that folder")
        logger.info("%s: holds this model already", save)
        return
    keeper = Keeper(place / "trials", wanted=best.name)
    if keeper.kept()[0] != best.name:
        logger.info("%s: the weights of %s were not kept; it is trained again", place, best.name)
        unfinished = place / "trials" / f"{best.name}.pt"
        best = run_trial(backbone, task, data, best.setting, best.seed, unfinished, keeper)
    model = TaskModel(copy.deepcopy(backbone), task, best.seed)
    model.load_state_dict(keeper.weights())
    model.eval()
    result, identity = read_record(place / RESULT_FILE), read_record(place / IDENTITY_FILE)
    with building(save) as aside:
        _write(aside, model, task, identity["max_length"])
        agreement = prove_answers(aside, model, task, data.dev)
        write_text(aside / CARD_FILE, render_card(task, best, result, identity, agreement, aside, start))
        write_json(aside / RECORD_FILE, {"trial": best.name, "dev": best.dev, "test": best.test, "identity": identity})
    keeper.forget()
    logger.info("%s: %s", save, agreement)


def _write(folder: Path, model: TaskModel, task: Task, max_length: int) -> None:
    """Write weights, config.json, tokenizer and, for RMSNorm, the code."""
    encoder, tokenizer = model.backbone.encoder, Path(model.backbone.tokenizer.name_or_path)
    assert isinstance(encoder, Encoder)
    parts = {"model": encoder, "head": model.head, "classifier": model.classifier}
    weights = {f"{name}.{key}": weight for name, part in parts.items() for key, weight in part.state_dict().items()}
    keys: dict[str, Any] = {
        **label_keys(task.outputs),
        "num_labels": len(task.outputs),  # text-embeddings-inference does not count id2label
        "classifier_dropout": DROPOUT,
    }
    if HEADS[task.kind] == "ForSequenceClassification":
        keys["problem_type"] = task.problem_type
    write_model_files(
        folder,
        weights,
        encoder.config,
        tokenizer,
        head=HEADS[task.kind],
        keys=keys,
        # As the training read them: cut where it cut, and a text's own "[MASK]" is text.
        tokenizer_settings={"model_max_length": max_length, "split_special_tokens": True},
    )
