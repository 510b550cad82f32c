"""`cmbert embed-train`: score the start, train at each size from it, score again; what is done is not done twice."""

import dataclasses
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmbert.environment import hardware, installed_versions, number_in
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.json_types import read_record
from cmbert.files.lease import alone_in, is_lease
from cmbert.files.operations import hash_file
from cmbert.files.whole import write_json
from cmbert.transfer.contamination import (
    TrainingFile,
    merge_training_data,
    read_training_data,
    read_training_sentences,
    sentence_hashes,
    share_of,
    write_training_data,
)
from cmbert.transfer.embedding.card import render_card
from cmbert.transfer.embedding.data import DataPaths, Negatives, TrainingData, hash_files, read_data
from cmbert.transfer.embedding.train import ContrastiveSettings
from cmbert.transfer.start_card import CARD_FILE

logger = logging.getLogger(__name__)

SETTINGS_FILE, RESULTS_FILE, TABLE_FILE, CURVE_FILE = "settings.json", "results.json", "results.md", "curve.png"
BEFORE_FILE, RUN_FILE = "before.json", "run.json"
RECORDED_PACKAGES = (
    "cmbert",
    "torch",
    "sentence-transformers",
    "transformers",
    "datasets",
    "tokenizers",
    "scipy",
    "numpy",
)


@dataclass(frozen=True)
class EmbeddingRun:
    """One call of `cmbert embed-train`."""

    model: str
    """Folder or Hugging Face name that sentence-transformers can open."""
    name: str
    """What the user called it."""
    data: DataPaths
    output: Path
    negatives: Negatives
    num_pairs: int | None
    scaling: tuple[int, ...]
    max_length: int
    settings: ContrastiveSettings
    trust: bool = False
    """Whether code that came with the model is run."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of pairs to train with; empty: all."""
        return tuple(sorted(self.scaling)) or ((self.num_pairs,) if self.num_pairs else ())


def encoder_folder(model: str, scratch: Path) -> str:
    """Return `model`, or where it was exported to if it is a run or a checkpoint: that is no Hugging Face folder."""
    path = Path(model)
    if not path.is_dir() or (path / "config.json").is_file() or (path / "modules.json").is_file():
        return model
    from cmbert.export.release import export

    export(path, scratch / "export", "hf")
    return str(scratch / "export")


def embed_train(run: EmbeddingRun) -> dict[str, Any]:
    """Do the run, or what is left of it, and return the contents of results.json.

    Leaves in `output`: settings.json, results.json, results.md, the model, what it was trained on; with `scaling` one
    folder for each size and curve.png. Raises InputError, ConfigError or CheckpointError for what the user can mend,
    another process at the same work among it.
    """
    from cmbert.transfer.embedding.scoring import open_embedder
    from cmbert.transfer.embedding.train import check_memory

    _check(run)
    hashes = hash_files(run.data)
    settings = _settings(run, hashes)
    is_begun = _is_begun(run.output, settings)
    if is_begun and (run.output / RESULTS_FILE).is_file():
        results = read_record(run.output / RESULTS_FILE, "before", "runs", "settings")
        logger.info("%s is finished; remove it to train again", run.output)
        _print(run, results)
        return results
    data = read_data(run.data, hashes, sizes=run.sizes, negatives=run.negatives, seed=run.settings.seed)
    if not is_begun:
        # What cannot be opened leaves no folder behind.
        check_memory(open_embedder(run.model, run.max_length, trust=run.trust))
    with alone_in(run.output):
        if not _is_begun(run.output, settings):
            write_json(run.output / SETTINGS_FILE, settings)
        return _train(run, data, settings)


def _train(run: EmbeddingRun, data: TrainingData, settings: dict[str, Any]) -> dict[str, Any]:
    """Train at each size, or those that are left; write and return the results."""
    sizes = run.sizes or (len(data.pairs),)
    started = time.monotonic()
    before = _before(run, data)
    runs = [_train_size(run, data, size, _folder(run, size), settings) for size in sizes]
    results = {
        "before": before,
        "runs": runs,
        "settings": settings,
        "versions": {"python": platform.python_version(), **installed_versions(RECORDED_PACKAGES)},
        "hardware": _hardware(),
        "seconds": round(time.monotonic() - started, 1),
    }
    _finish(run, results)
    return results


def _check(run: EmbeddingRun) -> None:
    if number_in(os.environ, "WORLD_SIZE") > 1:
        raise ConfigError("embed-train is one process on one device; start it without a launcher")
    if len(set(run.scaling)) != len(run.scaling):
        raise ConfigError("--scaling: a number of pairs is there twice; give each once")
    if min(run.scaling, default=1) < 1:
        raise ConfigError("--scaling: a number of pairs is below 1")


def _folder(run: EmbeddingRun, size: int) -> Path:
    return run.output / f"pairs_{size:09d}" if run.scaling else run.output


def _settings(run: EmbeddingRun, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """Return all that decides the figures. Speed and memory (mini_batch_size) do not."""
    from cmbert.transfer.encoders import weight_files

    weights = weight_files(Path(run.model))
    settings = dataclasses.asdict(run.settings)
    del settings["mini_batch_size"]
    return {
        "model": {"name": Path(run.name).name, "blake2b": [hash_file(path) for path in weights]},
        "files": {
            role: [{"path": path.name, "blake2b": hashes[path]} for path in paths]
            for role, paths in run.data.by_role().items()
        },
        "negatives": run.negatives,
        "num_pairs": run.num_pairs,
        "scaling": list(run.scaling),
        "max_length": run.max_length,
        **settings,
    }


def _is_begun(output: Path, settings: dict[str, Any]) -> bool:
    """Return whether `output` holds this run, begun before. Raises CheckpointError if it holds something else."""
    path = output / SETTINGS_FILE
    if path.is_file():
        old, new = _flat(read_record(path)), _flat(settings)
        different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if different:
            key = different[0]
            raise CheckpointError(
                f"{output}: made with other settings ({', '.join(different)}; {key} was {old.get(key)}, is now "
                f"{new.get(key)}); give those, or another --output"
            )
        return True
    if output.exists() and not all(map(is_lease, output.iterdir())):
        raise CheckpointError(f"{output}: not empty and not made by embed-train; give another --output")
    return False


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}" if key else name).items()}


def _before(run: EmbeddingRun, data: TrainingData) -> dict[str, Any]:
    """Score the start, once for all sizes and restarts."""
    from cmbert.transfer.embedding.scoring import open_embedder, score_pairs

    path = run.output / BEFORE_FILE
    if not path.is_file():
        start = open_embedder(run.model, run.max_length, trust=run.trust)
        write_json(path, score_pairs(start, data.evaluation).as_dict())
    before = read_record(path, "pearson", "spearman", "pairs")
    logger.info(
        "before: Pearson %.4f, Spearman %.4f on %s pairs", before["pearson"], before["spearman"], f"{before['pairs']:,}"
    )
    return before


def _train_size(
    run: EmbeddingRun, data: TrainingData, size: int, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Train from the start on the first `size` pairs, score, and leave model and record; return the record."""
    from cmbert.transfer.embedding.scoring import count_truncated, mine_negatives, open_embedder, score_pairs
    from cmbert.transfer.embedding.train import save_embedder, train_embedder

    if (folder / RUN_FILE).is_file():
        logger.info("%s pairs: done before", f"{size:,}")
        return read_record(folder / RUN_FILE, "pairs", "training", "after")
    embedder = open_embedder(run.model, run.max_length, trust=run.trust)
    pairs = data.pairs[:size]
    if run.negatives == "mined":
        pairs = mine_negatives(embedder, pairs)
    texts = set(data.sentences(pairs))
    truncated = count_truncated(embedder, list(texts))
    if truncated:
        logger.info(
            "%s of %s training texts are longer than %d tokens and cut",
            f"{truncated:,}",
            f"{len(texts):,}",
            run.max_length,
        )
    training = train_embedder(embedder, pairs, data, run.settings, folder / "checkpoints")
    after = score_pairs(embedder, data.evaluation).as_dict()
    logger.info("%s pairs: Pearson %.4f, Spearman %.4f", f"{size:,}", after["pearson"], after["spearman"])
    start = Path(run.model)
    files = merge_training_data(read_training_data(start), data.recorded(size))
    hashes = sentence_hashes(texts)
    evaluated = [text for row in data.evaluation for text in (row.first, row.second)]
    record = {
        "pairs": size,
        "training": training | {"texts": len(texts), "truncated_texts": truncated},
        "after": after,
        "evaluation_texts_seen_share": round(share_of(hashes, evaluated), 6),
    }
    hashes = _union(hashes, read_training_sentences(start))
    model = folder / "model"
    if (
        not model.exists()
    ):  # it does if a call ended between the model and its record: the same training, the same model
        before = read_record(run.output / BEFORE_FILE, "pearson", "spearman", "pairs")
        card = render_card(settings, before, record, files, start)
        save_embedder(embedder, model, lambda aside: _add(aside, card, files, hashes))
    write_training_data(folder, files, hashes)
    write_json(folder / RUN_FILE, record)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return record


def _add(aside: Path, card: str, files: Sequence[TrainingFile], hashes: Any) -> None:
    """Put beside a model what it was made of: for people, and for whoever would score it on what it has seen."""
    write_training_data(aside, files, hashes)
    (aside / CARD_FILE).write_text(card, encoding="utf-8")


def _union(one: Any, other: Any) -> Any:
    import numpy as np

    return np.union1d(one, other)


def _finish(run: EmbeddingRun, results: dict[str, Any]) -> None:
    from cmbert.transfer.embedding.report import draw_curve, write_table

    if run.scaling:
        draw_curve(results["before"], results["runs"], run.output / CURVE_FILE)
    write_table(results, run.output / TABLE_FILE)
    write_json(run.output / RESULTS_FILE, results)
    _print(run, results)


def _print(run: EmbeddingRun, results: Mapping[str, Any]) -> None:
    from cmbert.transfer.embedding.report import table

    print(table(results), end="")
    for folder in (_folder(run, found["pairs"]) / "model" for found in results["runs"]):
        trust = ", trust_remote_code=True" if (folder / "modeling_cmbert.py").is_file() else ""
        print(f"model written to {folder}; load it: SentenceTransformer({str(folder)!r}{trust})")


def _hardware() -> dict[str, Any]:
    import torch

    is_gpu = torch.cuda.is_available()
    return {
        "device": hardware(torch.device("cuda" if is_gpu else "cpu")),
        "precision": "bf16" if is_gpu and torch.cuda.is_bf16_supported() else "fp32",
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
