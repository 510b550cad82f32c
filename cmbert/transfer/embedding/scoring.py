"""Sentence embeddings: opening a model with mean pooling, scoring it on labelled pairs, mining hard negatives.

Shapes: P pairs, A different anchors, C different candidate texts, D hidden size.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from cmbert.errors import CheckpointError, ConfigError, InputError
from cmbert.files.reading import read_json
from cmbert.progress import Progress
from cmbert.transfer.embedding.pairs import Graded, Pair
from cmbert.transfer.encoders import open_encoder, opening, runs_our_code, settle

logger = logging.getLogger(__name__)

ENCODE_TEXTS = 4096  # encoded between two signs of progress
ENCODE_BATCH = 64  # texts of one forward
MINING_ANCHORS = 256  # anchors compared with all candidates at a time: 3 GB of scores for 3 million candidates
MINING_MARGIN = 0.05  # a negative scores at least 5 % below its positive: NV-Retriever, arXiv 2407.15831, TopK-PercPos
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


@dataclass(frozen=True)
class SimilarityScore:
    """How well cosine similarity agrees with the labels of P pairs."""

    pearson: float
    spearman: float
    alignment: float
    """Mean squared distance of label-1 pairs on the unit sphere (Wang and Isola, arXiv 2005.10242): less is better."""
    mean_cosine_label_1: float
    mean_cosine_label_0: float
    label_1_share: float
    """The balance of labels, 0 to 1: correlations of files with other balances do not compare."""
    pairs: int
    truncated_texts: int
    """Different texts cut to the largest length."""

    def as_dict(self) -> dict[str, float]:
        """Return the figures as JSON takes them."""
        return asdict(self)


def open_embedder(model: str, max_length: int, *, trust: bool = False) -> SentenceTransformer:
    """Open a sentence-transformers folder, or an encoder (folder or Hugging Face name) with mean pooling, in fp32.

    Texts are cut to `max_length` tokens. Code that came with the model is run if it is ours, or with `trust`. Raises
    CheckpointError for what is no encoder or has no tokenizer or another's, ConfigError for a length that the model
    cannot take.
    """
    folder = Path(model)
    if folder.is_dir():
        _require_files(folder)
    elif folder.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{model}: no such folder; give a run, a checkpoint, an exported folder or a model's name"
        )
    is_library = (folder / "modules.json").is_file()
    inner = str(_first_module(folder)) if is_library else model
    encoder = open_encoder(inner, trust=trust)  # the library below takes what lacks weights, or is a decoder
    longest = encoder.max_length
    if longest is not None and max_length > longest:
        raise ConfigError(f"--max-length {max_length}: {model} takes up to {longest} tokens; ask for no more")
    del encoder
    options: dict[str, Any] = {"trust_remote_code": trust or runs_our_code(Path(inner))}
    card = SentenceTransformerModelCardData(generate_widget_examples=False, local_files_only=True)
    shared: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu", "model_card_data": card}
    with quiet_libraries(), opening(model):
        if is_library:
            embedder = SentenceTransformer(model, local_files_only=True, **options, **shared)
        else:
            local = {**options, "local_files_only": True} if folder.is_dir() else options
            module = Transformer(
                model, config_kwargs=local, processor_kwargs=local, model_kwargs={**local, "dtype": torch.float32}
            )
            pooling = Pooling(module.get_embedding_dimension(), pooling_mode="mean")
            embedder = SentenceTransformer(modules=[module, pooling], **options, **shared)
        settle(embedder.tokenizer)
        embedder.max_seq_length = max_length
    return embedder


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; give a run, a checkpoint or a folder made by `cmbert export`")
    if not any(next(folder.rglob(name), None) for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder}: no tokenizer ({TOKENIZER_FILES[0]}); put the model's own beside its weights")


def _first_module(folder: Path) -> Path:
    """Return where a folder of sentence-transformers keeps its encoder."""
    path = folder / "modules.json"
    try:
        modules = read_json(path)
        place = folder / modules[0]["path"]
    except (InputError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: not a list of modules with their paths; download the model again") from error
    return place


def encode(embedder: SentenceTransformer, texts: Sequence[str], label: str) -> np.ndarray:
    """Return the embeddings of `texts` on the unit sphere, shape (texts, D), float32; texts of like length together."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    embeddings = np.empty((len(texts), embedder.get_embedding_dimension() or 0), dtype=np.float32)
    progress = Progress(label, len(texts), "texts")
    for first in range(0, len(texts), ENCODE_TEXTS):
        block = order[first : first + ENCODE_TEXTS]
        embeddings[block] = embedder.encode(
            [texts[index] for index in block],
            batch_size=ENCODE_BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        progress.advance(len(block))
    progress.close()
    return embeddings


def score_pairs(embedder: SentenceTransformer, rows: Sequence[Graded]) -> SimilarityScore:
    """Score cosine similarity against labels; figures are nan if all pairs are equally similar."""
    texts = list(dict.fromkeys(text for row in rows for text in (row.first, row.second)))
    index = {text: number for number, text in enumerate(texts)}
    embeddings = encode(embedder, texts, "scoring")
    first, second = ([index[getattr(row, side)] for row in rows] for side in ("first", "second"))
    cosine = np.einsum("pd,pd->p", embeddings[first], embeddings[second], dtype=np.float64)
    if truncated := count_truncated(embedder, texts):
        logger.info(
            "%s of %s scored texts are longer than the model reads, and cut", f"{truncated:,}", f"{len(texts):,}"
        )
    return score_cosines(cosine, np.array([row.grade for row in rows]), truncated)


def score_cosines(cosine: np.ndarray, labels: np.ndarray, truncated_texts: int = 0) -> SimilarityScore:
    """Return the figures of cosines and labels (0 or 1), both of shape (P,)."""
    from scipy import stats

    like, unlike = cosine[labels == 1], cosine[labels == 0]
    constant = np.ptp(cosine) == 0
    return SimilarityScore(
        pearson=math.nan if constant else float(stats.pearsonr(cosine, labels).statistic),
        spearman=math.nan if constant else float(stats.spearmanr(cosine, labels).statistic),
        alignment=float(np.mean(2 - 2 * like)),
        mean_cosine_label_1=float(like.mean()),
        mean_cosine_label_0=float(unlike.mean()),
        label_1_share=float(np.mean(labels)),
        pairs=len(labels),
        truncated_texts=truncated_texts,
    )


def count_truncated(embedder: SentenceTransformer, texts: Sequence[str]) -> int:
    """Return how many of `texts` are longer than an opened embedder takes; short ones are not tokenized.

    A token is at least a byte, so what has fewer bytes than tokens are allowed cannot be too long.
    """
    limit = embedder.max_seq_length
    assert limit is not None  # open_embedder set it
    tokenizer = embedder.tokenizer
    room = limit - tokenizer.num_special_tokens_to_add()
    suspects = [text for text in texts if len(text.encode()) > room]
    count = 0
    for first in range(0, len(suspects), ENCODE_TEXTS):
        encoded = tokenizer(suspects[first : first + ENCODE_TEXTS], truncation=False, verbose=False)
        count += sum(len(ids) > limit for ids in encoded["input_ids"])
    return count


def mine_negatives(embedder: SentenceTransformer, pairs: Sequence[Pair]) -> list[Pair]:
    """Give each pair the positive of other pairs nearest to its anchor that is MINING_MARGIN less near than its own.

    Of an anchor's several positives the least near sets the margin; neither they nor the anchor's own text are its
    negatives. A pair for which nothing is left stays without. The rule of sentence-transformers' mine_hard_negatives
    over all candidates, on the model's device and in memory that does not grow with the square of the set.
    """
    positives: dict[str, list[int]] = {pair.anchor: [] for pair in pairs}
    index = {text: number for number, text in enumerate(dict.fromkeys(pair.positive for pair in pairs))}
    for pair in pairs:
        positives[pair.anchor].append(index[pair.positive])
    texts, anchors = list(index), list(positives)
    candidates_CD = torch.from_numpy(encode(embedder, texts, "mining: candidates")).to(embedder.device)
    anchors_AD = torch.from_numpy(encode(embedder, anchors, "mining: anchors")).to(embedder.device)
    found: dict[str, str | None] = {}
    progress = Progress("mining: search", len(anchors), "anchors")
    for first in range(0, len(anchors), MINING_ANCHORS):
        block = anchors[first : first + MINING_ANCHORS]
        scores_AC = anchors_AD[first : first + MINING_ANCHORS] @ candidates_CD.T
        own_A1 = torch.stack([row[positives[a]].min() for row, a in zip(scores_AC, block, strict=True)])[:, None]
        scores_AC[scores_AC > own_A1 - own_A1.abs() * MINING_MARGIN] = -torch.inf
        for row, anchor in zip(scores_AC, block, strict=True):
            row[positives[anchor] + [index[text] for text in (anchor,) if text in index]] = -torch.inf
        best = scores_AC.max(dim=1)
        for anchor, value, column in zip(block, best.values.tolist(), best.indices.tolist(), strict=True):
            found[anchor] = texts[column] if math.isfinite(value) else None
        progress.advance(len(block))
    progress.close()
    mined = [pair._replace(negative=found[pair.anchor]) for pair in pairs]
    without = sum(pair.negative is None for pair in mined)
    logger.info("%s of %s pairs have a mined negative", f"{len(mined) - without:,}", f"{len(mined):,}")
    return mined


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence transformers' and datasets' advice and progress bars for as long as the context lasts."""
    import datasets
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()
