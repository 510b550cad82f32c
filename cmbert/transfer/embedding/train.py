"""One contrastive fine-tuning through sentence-transformers: data sets, losses, the trainer, checkpoints to resume.

Losses: CachedMultipleNegativesRankingLoss (arXiv 1705.00652, cached as in 2101.06983) on pairs, triplets and inference;
CoSENT (kexue.fm/archives/8847), which asks only for the order of grades, on graded similarity.
"""

import json
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, CoSENTLoss
from transformers import PrinterCallback, TrainerCallback

from cmbert.errors import ConfigError
from cmbert.files.folders import building
from cmbert.memory import require_memory
from cmbert.model.cost import FP32_BYTES
from cmbert.progress import Progress
from cmbert.transfer.embedding.data import TrainingData
from cmbert.transfer.embedding.pairs import Graded, Pair
from cmbert.transfer.embedding.scoring import quiet_libraries
from cmbert.transfer.embedding.spelling import spell_for_all

logger = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""Between two checkpoints: what an interruption may cost."""
WARMUP_SHARE = 0.1  # of all steps, linear up; then linear to 0 (T2Ranking's dual encoder, script/train_dual_encoder.sh)
WEIGHT_DECAY = 0.01  # the same script's optimizer
SCALE = 20.0  # of cosines in either loss, a temperature of 0.05: sentence-transformers' default
TRAINER_STATE = "trainer_state.json"  # the trainer writes it last, so a checkpoint without it is torn


@dataclass(frozen=True)
class ContrastiveSettings:
    """The settings of a training that a user may choose."""

    epochs: int
    batch_size: int
    """Pairs of a step, each a negative for the others."""
    mini_batch_size: int
    """Texts of a forward and backward; changes memory and speed, not the result."""
    learning_rate: float
    seed: int


def build_datasets(
    pairs: Sequence[Pair], inference: Sequence[Pair], similarity: Sequence[Graded]
) -> dict[str, Dataset]:
    """Return the data sets by name, those with negatives apart; their rows have the columns that the losses take."""
    groups: dict[str, Sequence[tuple[Any, ...]]] = {
        "pairs": [pair[:2] for pair in pairs if pair.negative is None],
        "triplets": [pair for pair in pairs if pair.negative is not None],
        "inference_pairs": [pair[:2] for pair in inference if pair.negative is None],
        "inference_triplets": [pair for pair in inference if pair.negative is not None],
        "similarity": similarity,
    }
    sets = {}
    for name, rows in groups.items():
        names = ("sentence1", "sentence2", "score") if name == "similarity" else ("anchor", "positive", "negative")
        if rows:  # names without a third column in the rows fall away
            columns = [list(column) for column in zip(*rows, strict=True)]
            sets[name] = Dataset.from_dict(dict(zip(names, columns, strict=False)))
    return sets


def train_embedder(
    embedder: SentenceTransformer,
    pairs: Sequence[Pair],
    data: TrainingData,
    settings: ContrastiveSettings,
    folder: Path,
) -> dict[str, Any]:
    """Train `embedder` in place on `pairs` and the other sets of `data`; return steps, seconds and the last loss.

    Continues from the last whole checkpoint in `folder`, which stays until the caller removes it. Raises ConfigError
    if more than one GPU or process would take part: their batches would be other batches.
    """
    if torch.cuda.device_count() > 1:
        raise ConfigError("more than one GPU in sight, embed-train uses one; set CUDA_VISIBLE_DEVICES=0")
    if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports, warns that it looked for one
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    seed_everything(settings.seed)
    sets = build_datasets(pairs, data.inference, data.similarity)
    ranking = CachedMultipleNegativesRankingLoss(embedder, scale=SCALE, mini_batch_size=settings.mini_batch_size)
    graded = CoSENTLoss(embedder, scale=SCALE)
    losses: dict[str, torch.nn.Module] = {name: graded if name == "similarity" else ranking for name in sets}
    logger.info("training on %s", ", ".join(f"{len(rows):,} {name}" for name, rows in sets.items()))
    watch = _Watch()
    with quiet_libraries():
        trainer = _Trainer(
            model=embedder,
            args=_arguments(settings, folder),
            train_dataset=DatasetDict(sets),
            loss=losses,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        checkpoint = last_checkpoint(folder)
        if checkpoint:
            logger.info("continuing from %s", checkpoint.name)
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.progress.close()
    return {
        "steps": trainer.state.global_step,
        "loss": round(float(watch.loss), 6),
        "seconds": round(time.monotonic() - started, 1),
        "rows": {name: len(rows) for name, rows in sets.items()},
        "rows_left_out_of_a_pass": trainer.rows_left_out(),
        "continued": checkpoint is not None,
    }


def check_memory(embedder: SentenceTransformer) -> None:
    """Raise ConfigError when gradients and two moments, fp32, do not fit beside `embedder`, which is there already."""
    total = sum(weight.numel() for weight in embedder.parameters())
    what = f"training an embedding model of {total / 1e6:,.0f}M parameters"
    require_memory(what, total * 3 * FP32_BYTES, embedder.device, "take a smaller model")


def _arguments(settings: ContrastiveSettings, folder: Path) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=WARMUP_SHARE,
        lr_scheduler_type="linear",
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        multi_dataset_batch_sampler="proportional",
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class CountingSampler(NoDuplicatesBatchSampler):
    """The library's, which counts the rows of a pass.

    Rows that share a text are in no batch together. A pass ends after rows / batch size batches all the same, so that
    what is left of such rows by then is not trained on in it.
    """

    drawn: int | None = None
    """Rows of the last pass; None before the first."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each batch."""
        self.drawn = 0
        for batch in super().__iter__():
            self.drawn += len(batch)
            yield batch


class _Trainer(SentenceTransformerTrainer):
    """The library's, with samplers that count, without the examples of its model card and their progress bar."""

    samplers: tuple[CountingSampler, ...] = ()

    def get_batch_sampler(self, dataset: Any, *arguments: Any, **options: Any) -> CountingSampler:
        """Return the sampler of one set."""
        sampler = CountingSampler(dataset, *arguments, **options)
        self.samplers += (sampler,)
        return sampler

    def rows_left_out(self) -> int:
        """Return how many rows the last pass had in no batch, and say so."""
        passes = [(len(sampler.dataset), sampler.drawn) for sampler in self.samplers if sampler.drawn is not None]
        left = sum(rows - drawn for rows, drawn in passes)
        if left:
            rows = f"{sum(rows for rows, _ in passes):,}"
            said = "%s of %s rows were in no batch of the last pass: too many share a text; lower --batch-size"
            logger.warning(said, f"{left:,}", rows)
        return left

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none."""


class _Watch(TrainerCallback):
    """Shows progress, keeps the loss, and asks for a checkpoint every SAVE_SECONDS."""

    progress: Progress
    loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress = Progress("training", state.max_steps, "steps", done=state.global_step)
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.advance(1, f"loss {self.loss:.3f}")
        if time.monotonic() - self.saved >= SAVE_SECONDS and state.global_step < state.max_steps:
            control.should_save = True
            self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        self.loss = seen["logs"].get("loss", self.loss)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch: the libraries beneath draw from all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest whole checkpoint of the trainer in `folder`, if there is one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def save_embedder(embedder: SentenceTransformer, output: Path, add: Any) -> None:
    """Write the model as a sentence-transformers folder, `add(folder)` puts more beside it; whole or not at all."""
    with building(output) as aside:
        with quiet_libraries():
            embedder.save_pretrained(str(aside), create_model_card=False)
        spell_for_all(aside, embedder.max_seq_length)
        add(aside)
