"""One fine-tuning: one model, one setting, one seed. Deterministic on a CPU; goes on after the last saved epoch."""

import copy
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cmbert.files.folders import aside_path
from cmbert.files.operations import fsync_path
from cmbert.memory import require_memory
from cmbert.model.cost import OPTIMIZER_BYTES, estimate_activations
from cmbert.model.encoder import Encoder
from cmbert.model.mixed_precision import MixedPrecision
from cmbert.progress import Progress
from cmbert.seeding import generator, integer_seed
from cmbert.transfer.finetune.backbone import Backbone
from cmbert.transfer.finetune.items import Item
from cmbert.transfer.finetune.keeping import Keeper
from cmbert.transfer.finetune.task_model import TaskModel
from cmbert.transfer.tasks.fields import Example
from cmbert.transfer.tasks.scores import Found, answer_text, said_scores, score
from cmbert.transfer.tasks.task import Task

logger = logging.getLogger(__name__)

WARMUP_SHARE = 0.1  # of the steps, in which the rate rises; then it falls in a line to 0 (BERT's recipe)
FORWARD_TOKENS = 16_384  # positions in one forward, padding among them; a batch may take several
SAVE_SECONDS = 120.0  # an epoch that ends so long after the last save is saved


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the grid varies."""

    learning_rate: float
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """Return a name for files and tables."""
        return f"lr{self.learning_rate:g}_batch{self.batch_size}_epochs{self.epochs}"


@dataclass(frozen=True)
class Data:
    """The encoded splits of a task."""

    train: list[Item]
    dev: list[Item]
    test: list[Item]
    """Empty if there is no test split."""


@dataclass(frozen=True)
class TrialResult:
    """What came out; kept as JSON, so that a second run need not do it again."""

    setting: Setting
    seed: int
    dev: dict[str, float]
    """Scores, percent."""
    test: dict[str, float]
    """Scores, percent; empty if the test split has no labels or is not there."""
    dev_answers: list[str]
    test_answers: list[str]
    losses: list[float]
    """Mean training loss of each epoch, nats per target."""
    seconds: float
    dev_by_epoch: list[dict[str, float]] = field(default_factory=list)
    """Scores after each epoch, percent, the last of them `dev`; empty in a record of before they were kept."""

    @property
    def name(self) -> str:
        """Return the name of its record."""
        return trial_name(self.setting, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrialResult":
        """Return what `as_dict` wrote."""
        return cls(**{**values, "setting": Setting(**values["setting"])})


def trial_name(setting: Setting, seed: int) -> str:
    """Return the name of a trial's files."""
    return f"{setting.name}_seed{seed}"


@dataclass
class Course:
    """What a training has come to, epoch by epoch."""

    losses: list[float] = field(default_factory=list)
    dev: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    """Of earlier calls."""
    found: list[Found] = field(default_factory=list)
    """The answers to dev after the last epoch."""


def run_trial(
    backbone: Backbone,
    task: Task,
    data: Data,
    setting: Setting,
    seed: int,
    saved: Path,
    keeper: Keeper | None = None,
) -> TrialResult:
    """Train a copy of `backbone` on the training split and answer the others, dev after every epoch.

    The model of the last epoch is what counts, whatever an earlier one scored. saved: where an unfinished trial is
    kept, and found again. keeper: is offered the weights.
    """
    started = time.monotonic()
    model = TaskModel(copy.deepcopy(backbone), task, seed).to(*where_to_train())
    model.measure(data.train)
    course = _train(model, task, data, setting, seed, saved)
    model.fold_unit()
    test = answer_all(model, data.test)
    scored = bool(data.test) and all(item.example.labelled for item in data.test)
    if keeper is not None:
        keeper.offer(trial_name(setting, seed), course.dev[-1][task.score_names[0]], model)
    saved.unlink(missing_ok=True)
    return TrialResult(
        setting=setting,
        seed=seed,
        dev=course.dev[-1],
        test=score(task, examples_of(data.test), test) if scored else {},
        dev_answers=[answer_text(task, found) for found in course.found],
        test_answers=[answer_text(task, found) for found in test],
        losses=course.losses,
        seconds=round(course.seconds + time.monotonic() - started, 1),
        dev_by_epoch=course.dev,
    )


def examples_of(items: Sequence[Item]) -> list[Example]:
    """Return the examples that items are made of."""
    return [item.example for item in items]


def where_to_train() -> tuple[torch.device, torch.dtype]:
    """Return the GPU and bf16 weights (with fp32 copies in the optimizer), or the CPU and fp32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def check_memory(backbone: Backbone, batch_size: int, data: Data) -> None:
    """Raise ConfigError when a copy of `backbone`, its optimizer and a usual batch of ours do not fit."""
    device, dtype = where_to_train()
    total = sum(weight.numel() for weight in backbone.parameters())
    needed: float = total * (dtype.itemsize + OPTIMIZER_BYTES)  # fp32 weights are their own copies, but have gradients
    if isinstance(backbone.encoder, Encoder):
        lengths = [sum(len(part.ids) for part in item.parts) for item in data.train]
        tokens = min(batch_size * sum(lengths) // max(len(lengths), 1), FORWARD_TOKENS)
        config, kernels = backbone.encoder.config, backbone.encoder.kernels
        needed += estimate_activations(config, kernels, tokens, num_masked=0, value_bytes=dtype.itemsize).kept
    remedy = "lower --batch-sizes, or take a smaller model"
    require_memory(f"fine-tuning {total / 1e6:,.0f}M parameters", needed, device, remedy)


def _train(model: TaskModel, task: Task, data: Data, setting: Setting, seed: int, saved: Path) -> Course:
    """Train from the last saved epoch on, in evaluation mode at the end; say how each epoch went."""
    optimizer, items = MixedPrecision(model, setting.learning_rate), data.train
    steps_per_epoch = -(-len(items) // setting.batch_size)
    course = _restore(saved, model, optimizer)
    started = last_save = time.monotonic()
    name = f"{task.name} {setting.name} seed {seed}"
    progress = Progress(name, setting.epochs * len(items), "examples")
    progress.done = progress.done_before = len(course.losses) * len(items)
    for epoch in range(len(course.losses), setting.epochs):
        torch.manual_seed(integer_seed(seed, "finetune-dropout", epoch))
        order = generator(seed, "finetune-order", epoch).permutation(len(items))
        model.train()
        total, num_targets = 0.0, 0
        for step in range(steps_per_epoch):
            batch = [items[place] for place in order[step * setting.batch_size : (step + 1) * setting.batch_size]]
            total += backward(model, batch)
            num_targets += model.num_targets(batch)
            share = (epoch * steps_per_epoch + step + 1) / (setting.epochs * steps_per_epoch)
            optimizer.step(setting.learning_rate * min(share / WARMUP_SHARE, (1 - share) / (1 - WARMUP_SHARE)))
            progress.advance(len(batch), f"loss {total / num_targets:.3f}")
        course.losses.append(total / num_targets)
        progress.close()
        _score_epoch(model, task, data, course, f"{name}, epoch {epoch + 1} of {setting.epochs}")
        if epoch + 1 < setting.epochs and time.monotonic() - last_save > SAVE_SECONDS:
            _save(saved, model, optimizer, course, course.seconds + time.monotonic() - started)
            last_save = time.monotonic()
    return course


def _score_epoch(model: TaskModel, task: Task, data: Data, course: Course, name: str) -> None:
    """Answer dev. Nothing is drawn for it, and an epoch seeds its own dropout: the training goes on as without it."""
    model.eval()
    course.found = answer_all(model, data.dev)
    course.dev.append(score(task, examples_of(data.dev), course.found))
    logger.info("%s: loss %.3f, dev %s", name, course.losses[-1], said_scores(course.dev[-1]))


def _save(path: Path, model: TaskModel, optimizer: MixedPrecision, course: Course, seconds: float) -> None:
    aside = aside_path(path)
    copies = [] if model.classifier.weight.dtype == torch.float32 else optimizer.copies
    state = {"model": model.state_dict(), "optimizer": optimizer.optimizer.state_dict(), "copies": copies}
    torch.save({**state, "losses": course.losses, "dev": course.dev, "seconds": seconds}, aside)
    fsync_path(aside)
    os.replace(aside, path)


def _restore(path: Path, model: TaskModel, optimizer: MixedPrecision) -> Course:
    if not path.is_file():
        return Course()
    state = torch.load(path, map_location=model.classifier.weight.device, weights_only=True)
    if "dev" not in state:
        logger.warning("%s: begun by a version that did not score dev by epoch; begun anew", path)
        return Course()
    model.load_state_dict(state["model"])
    optimizer.optimizer.load_state_dict(state["optimizer"])
    for copy_, kept in zip(optimizer.copies, state["copies"], strict=False):
        copy_.copy_(kept)
    return Course(losses=state["losses"], dev=state["dev"], seconds=state["seconds"])


def backward(model: TaskModel, batch: Sequence[Item]) -> float:
    """Add up the gradients of a batch's mean loss, a few forwards if it is long; return its summed loss."""
    num_targets = model.num_targets(batch)
    total = 0.0
    for chunk in by_tokens([chunk for item in batch for chunk in in_chunks(item)]):
        loss = model.loss_sum(chunk)
        (loss / num_targets).backward()
        total += float(loss.detach())
    return total


def by_tokens(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield chunks of items, the longest first, of at most FORWARD_TOKENS positions if padded to the longest."""
    chunk: list[Item] = []
    longest = parts = 0
    for item in sorted(items, key=_longest, reverse=True):
        if chunk and (parts + len(item.parts)) * longest > FORWARD_TOKENS:
            yield chunk
            chunk, parts = [], 0
        longest = longest if chunk else _longest(item)
        chunk.append(item)
        parts += len(item.parts)
    if chunk:
        yield chunk


def _longest(item: Item) -> int:
    return max(len(part.ids) for part in item.parts)


def in_chunks(item: Item) -> Iterator[Item]:
    """Yield a span task's item in chunks of at most FORWARD_TOKENS positions: a book has thousands of windows."""
    windows = max(1, FORWARD_TOKENS // _longest(item)) if item.spans else len(item.parts)
    for first in range(0, len(item.parts), windows):
        some = slice(first, first + windows)
        yield item if windows >= len(item.parts) else replace(item, parts=item.parts[some], spans=item.spans[some])


def answer_all(model: TaskModel, items: Sequence[Item]) -> list[Found]:
    """Answer every item, in order."""
    chunks = [(place, chunk) for place, item in enumerate(items) for chunk in in_chunks(item)]
    places = {id(chunk): place for place, chunk in chunks}
    found: list[Found] = [Found(score=-math.inf)] * len(items)
    for some in by_tokens([chunk for _, chunk in chunks]):
        for chunk, answer in zip(some, model.answer(some), strict=True):
            place = places[id(chunk)]
            if answer.score > found[place].score:
                found[place] = answer
    return found
