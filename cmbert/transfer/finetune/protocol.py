"""The protocol, the same for every model: the setting that does best on dev, then several seeds of it.

A model is scored after its last epoch. Dev figures are of the split the setting was chosen on: slightly flattering, the
same way for all. Everything done is kept under the output folder, and a second call goes on from there.
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cmbert.environment import versions
from cmbert.errors import ConfigError, InputError
from cmbert.evaluate.interval import interval
from cmbert.files.json_types import read_record
from cmbert.files.lease import alone_in
from cmbert.files.whole import write_json, write_text
from cmbert.transfer.contamination import read_training_data, share_seen
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.finetune.defaults import Asked
from cmbert.transfer.finetune.identity import IDENTITY_FILE, describe, is_known
from cmbert.transfer.finetune.items import Item, prepare
from cmbert.transfer.finetune.keeping import Keeper
from cmbert.transfer.finetune.losses import count_entities, count_out_of_reach, losses_of
from cmbert.transfer.finetune.saving import RESULT_FILE, check_save, save_tuned
from cmbert.transfer.finetune.trial import Data, Setting, TrialResult, check_memory, run_trial, trial_name
from cmbert.transfer.tasks.examples import Split, read_task
from cmbert.transfer.tasks.scores import said_scores, submission
from cmbert.transfer.tasks.task import Task

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")  # an id that is one; a text such as "007" stays one
MAX_SHARE_SEEN = 0.01  # of the texts of a task that SimCLUE contains; short sentences meet by chance


def finetune(
    backbone: Backbone,
    task: Task,
    folder: Path,
    output: Path,
    *,
    model_name: str,
    asked: Asked,
    num_seeds: int,
    model_folder: Path | None = None,
    save: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune `backbone` on a task and return what is written to `output`/TASK/MODEL/result.json.

    asked: tried with seed 0. Of these and all that earlier calls tried here, the best on dev is trained with seeds 0
    to num_seeds - 1: whoever compares two calls' dev scores has chosen by them, too. model_folder: where the
    model lies, if it may hold a record of its fine-tuning. Raises InputError for data that is not as it should be,
    ConfigError when `output` holds results of another model, data or task, or the model has seen the task's texts;
    CheckpointError while another process does the same.
    """
    task, splits = read_task(task, folder)
    seen = share_of_texts_seen(task, splits, model_folder) if model_folder else 0.0
    max_length = min(task.max_length, backbone.max_length or task.max_length)
    place = output / task.name / model_name
    identity = describe(backbone, task, folder, max_length)
    is_known(place, identity)  # what is refused leaves no folder behind
    if save is not None:
        check_save(backbone, model_name, identity, save)
    with alone_in(place):
        if not is_known(place, identity):
            write_json(place / IDENTITY_FILE, identity)
        keeper = Keeper(place / "trials") if save is not None else None
        result, best, data = _follow(backbone, task, splits, max_length, place, asked, num_seeds, keeper)
        result["share_of_texts_seen"] = seen
        write_json(place / RESULT_FILE, result)
        if save is not None:
            save_tuned(backbone, task, data, best, place, save, start=model_folder)
    return result


def _follow(
    backbone: Backbone,
    task: Task,
    splits: dict[str, Split | None],
    max_length: int,
    place: Path,
    asked: Asked,
    num_seeds: int,
    keeper: Keeper | None,
) -> tuple[dict[str, Any], TrialResult, Data]:
    """Do what the protocol asks for, or what is left of it; return what was found, its best trial and what it read."""
    items = {
        name: prepare(backbone, task, split.examples if split else (), max_length) for name, split in splits.items()
    }
    counts = ", ".join(f"{len(part):,} {name}" for name, part in items.items())
    losses = losses_of(task, splits, items)
    lost = "".join(f"; {count:,} {what.replace('_', ' ')}" for what, count in losses.items() if count)
    logger.info("%s, %s: %s examples, of %d tokens at most%s", task.name, place.name, counts, max_length, lost)
    items["train"] = [item for item in items["train"] if task.kind != "span" or item.example.answer_start >= 0]
    if not items["train"]:
        raise InputError(f"{task.name}: no answer of {', '.join(task.train)} stands in its text; nothing to learn")
    data = Data(**items)
    chosen = task, backbone.hidden_size, len(data.train)
    settings, why = asked.settings(*chosen), asked.why(*chosen)
    trainings = len(settings) + num_seeds - 1  # the best setting's first seed is one of them
    steps = max(setting.epochs * math.ceil(len(data.train) / setting.batch_size) for setting in settings)
    logger.info("%s: %s; %d trainings of %s steps at most", task.name, said(settings, why), trainings, f"{steps:,}")
    check_memory(backbone, max(setting.batch_size for setting in settings), data)
    searched = [_trial(backbone, task, data, setting, 0, place, keeper) for setting in settings]
    searched += _tried_before(place, settings)
    best = max(searched, key=lambda result: result.dev[task.score_names[0]])
    if len(searched) > 1:
        logger.info("%s, %s: best on dev of %d settings: %s", task.name, place.name, len(searched), best.setting.name)
    trials = [_trial(backbone, task, data, best.setting, seed, place, keeper) for seed in range(num_seeds)]
    best = max(trials, key=lambda trial: trial.dev[task.score_names[0]])
    result = {
        "task": task.name,
        "model": place.name,
        "scores": list(task.score_names),
        "labels": list(task.labels),
        "setting": asdict(best.setting),
        "max_length": max_length,
        "grid": [{**asdict(trial.setting), "dev": trial.dev} for trial in searched],
        "curves": [{"seed": t.seed, "train_loss": t.losses, "dev": t.dev_by_epoch} for t in trials],
        "splits": {name: _summary(task, splits[name], items[name], trials) for name in ("dev", "test") if splits[name]},
        "train_examples": len(data.train),
        **losses,
        "seconds": round(sum({(trial.setting, trial.seed): trial.seconds for trial in searched + trials}.values()), 1),
        **versions(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    _write_predictions(task, data.test, best, place)
    return result, best, data


def said(settings: Sequence[Setting], why: dict[str, str]) -> str:
    """Return what is tried and who chose it, for the log."""
    rates, epochs, batches = (
        ", ".join(f"{value:g}" for value in dict.fromkeys(getattr(setting, key) for setting in settings))
        for key in ("learning_rate", "epochs", "batch_size")
    )
    return f"learning rate {rates} ({why['learning_rate']}); epochs {epochs} ({why['epochs']}); batch {batches}"


def share_of_texts_seen(task: Task, splits: dict[str, Split | None], model_folder: Path) -> float:
    """Return the share of the dev and test texts that the model was fine-tuned on by `cmbert embed-train`.

    Raises ConfigError if it was trained on SimCLUE, by name or by its sentences, and SimCLUE contains the task.
    """
    scored = [split for name, split in splits.items() if split and name != "train"]
    parts = [part for split in scored for example in split.examples for part in example.parts]
    share = share_seen(model_folder, [text for part in parts for text in part if text])
    names = [file.path for file in read_training_data(model_folder) if file.source == "simclue"]
    if task.in_simclue and (names or share > MAX_SHARE_SEEN):
        raise ConfigError(
            f"--model {model_folder}: was trained on SimCLUE ({', '.join(names) or f'{share:.0%} of these texts'}), "
            f"which contains {task.name}: a score would be of what it has seen; use the model before that training"
        )
    if share:
        logger.warning("%s: the model was fine-tuned on %.1f %% of the texts it is asked about", task.name, 100 * share)
    return share


def _trial(
    backbone: Backbone, task: Task, data: Data, setting: Setting, seed: int, place: Path, keeper: Keeper | None
) -> TrialResult:
    """Run a trial, or read what an earlier call found."""
    path = _trial_path(place, setting, seed)
    if path.is_file():
        return _read_trial(path)
    path.parent.mkdir(exist_ok=True)
    result = run_trial(backbone, task, data, setting, seed, path.with_suffix(".pt"), keeper)
    write_json(path, result.as_dict())
    logger.info(
        "%s %s seed %d: dev %s after the last epoch, which counts (%.0f s)",
        *(task.name, setting.name, seed, said_scores(result.dev), result.seconds),
    )
    return result


def _trial_path(place: Path, setting: Setting, seed: int) -> Path:
    return place / "trials" / f"{trial_name(setting, seed)}.json"


def _read_trial(path: Path) -> TrialResult:
    try:
        return TrialResult.from_dict(read_record(path, "setting"))
    except TypeError as error:
        raise InputError(f"{path}: not a trial's record; remove it and run the same command again") from error


def _tried_before(place: Path, settings: Sequence[Setting]) -> list[TrialResult]:
    """Return the first seed of every setting that earlier calls tried and this one does not ask for."""
    asked = {_trial_path(place, setting, 0) for setting in settings}
    return [_read_trial(path) for path in sorted(place.glob("trials/*_seed0.json")) if path not in asked]


def _summary(task: Task, split: Split | None, items: Sequence[Item], trials: Sequence[TrialResult]) -> dict[str, Any]:
    """Return size, majority class and each score's mean and interval over the seeds."""
    assert split is not None
    found: dict[str, Any] = {"examples": len(items), "labelled": split.labelled}
    if not split.labelled:
        return found
    if task.kind == "classification":
        counts = Counter(item.example.label for item in items)
        found["majority_share"] = round(100 * max(counts.values()) / len(items), 2)
    if task.kind == "tokens":
        found["entities"] = count_entities(items)
        found["entities_out_of_reach"] = count_out_of_reach(items).total()
    for name in task.score_names:
        found[name] = interval([getattr(trial, split.name)[name] for trial in trials])
    return found


def _write_predictions(task: Task, items: Sequence[Item], trial: TrialResult, place: Path) -> None:
    """Write the test answers of the seed that did best on dev, in CLUE's submission format."""
    if not items:
        return
    pairs = [(item.example.id, answer) for item, answer in zip(items, trial.test_answers, strict=True)]
    if task.reader in ("chid", "cmrc"):  # one JSON object
        answers = {identity: int(answer) if task.reader == "chid" else answer for identity, answer in pairs}
        write_json(place / task.predictions_file, answers)
        return
    lines = []
    for item, (identity, answer) in zip(items, pairs, strict=True):
        record = {"id": int(identity) if NUMBER.fullmatch(identity) else identity}
        lines.append(json.dumps(record | submission(task, item.example, answer), ensure_ascii=False))
    write_text(place / task.predictions_file, "\n".join(lines) + "\n")
