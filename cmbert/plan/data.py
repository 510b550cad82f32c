"""What shard sets at hand say about a stage, and what text and ledger cost where they say nothing."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from cmbert.checkpoint.files import find_checkpoint
from cmbert.config.schema import Recipe
from cmbert.data.shards.layout import SHARD_SUFFIXES, is_shard_set, token_dtype
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.sources import check_epochs, open_blend
from cmbert.errors import ConfigError
from cmbert.model.config_json import is_model_folder
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.cleaning import CleanCost, cost_of_cleaning
from cmbert.schedule import Schedule
from cmbert.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer

LEDGER_BYTES = (1.3, 3.3)  # per segment: measured on reviews and on statutes, docs/rows.md


@dataclass(frozen=True)
class PlannedSource:
    """One shard set; None = not known, because something is not there yet."""

    path: str
    tokens: int | None = None
    rows: int | None = None
    epochs: float | None = None
    bytes: int | None = None
    documents: int | None = None
    text_bytes: int | None = None


@dataclass(frozen=True)
class DataCost:
    """Disk and core-hours of a stage's data. What is "measured" comes from shard sets, the rest is assumed."""

    shards_bytes: float
    """On disk when every set exists, else of the stage's tokens read once, without the .idx files."""
    shards_measured: bool
    document_tokens: float
    """Mean of the sets' documents, or assumed."""
    document_tokens_measured: bool
    ledger_segments: float
    """A document is cut at the row's length; the few more that packing cuts are left out."""
    ledger_bytes: tuple[float, float]
    """From 1.3 to 3.3 bytes a segment."""
    text_bytes: float
    """UTF-8, of the sets' documents, or of the stage's tokens read once."""
    text_bytes_per_token: float
    text_bytes_measured: bool
    preprocess_core_hours: float
    clean: CleanCost


def look_at_data(recipe: Recipe) -> tuple[tuple[PlannedSource, ...], tuple[str, ...]]:
    """Return what is known about each source, and notes on what is not there yet.

    Raises ConfigError or ShardError for a tokenizer that is not the model's, shards of another tokenizer, torn ones and
    too many epochs.
    """
    data, tokenizer, notes = recipe.data, _find_tokenizer(recipe), []
    there = {number: source for number, source in enumerate(data.sources) if is_shard_set(Path(source.path))}
    if tokenizer is None:
        notes.append(
            f"{data.tokenizer}: not there yet: "
            f"data_tools train-tokenizer --vocab-size {recipe.model.vocab_size} --output {data.tokenizer}"
        )
    notes += [
        f"{source.path}: not there yet: data_tools preprocess --tokenizer {data.tokenizer} --output {source.path}"
        for number, source in enumerate(data.sources)
        if number not in there
    ]
    origin = Path(recipe.train.init_from)
    if recipe.train.init_from and not (is_model_folder(origin) or find_checkpoint(origin)):
        notes.append(f"{recipe.train.init_from}: no checkpoint yet; train the stage before this one")
    known = {number: _describe_shards(source.path) for number, source in there.items()}
    if tokenizer is not None and there:
        found = data
        if len(there) < len(data.sources):  # the rest of a blend says nothing but how many rows there are
            found = dataclasses.replace(data, sources=tuple(there.values()), changes=())
        blend = open_blend(found, tokenizer, recipe.train.seed, rows_per_step=recipe.train.rows_per_step)
        epochs: list[float | None] = [None] * len(there)
        if found == data:
            schedule = Schedule.of(recipe)
            num_rows = schedule.rows_before(schedule.num_steps)
            repeated = [*blend.epochs(num_rows)]
            try:
                check_epochs(blend, data, num_rows)
            except ConfigError as error:
                raise ConfigError(f"{error}{_nearest_tokens(recipe, repeated)}") from error
            epochs = [*repeated]
        for number, rows, repeats in zip(there, blend.sources, epochs, strict=True):
            known[number] = dataclasses.replace(known[number], rows=rows.num_rows, epochs=repeats)
    return tuple(known.get(n, PlannedSource(source.path)) for n, source in enumerate(data.sources)), tuple(notes)


def _nearest_tokens(recipe: Recipe, epochs: list[float]) -> str:
    """Name the most tokens that every source's max_epochs allows, in whole steps (with a constant blend: exactly)."""
    read = [source.max_epochs / found for source, found in zip(recipe.data.sources, epochs, strict=True) if found]
    share = min(read)
    if share >= 1:  # too few rows of a source, not too many
        return ""
    step_tokens = recipe.train.rows_per_step * recipe.data.context_tokens
    schedule = Schedule.of(recipe)
    tokens = int(share * schedule.rows_before(schedule.num_steps) * schedule.context_tokens)
    steps = tokens // step_tokens
    return f"; nearest that works: train.total_tokens = {steps * step_tokens:_}" if steps else ""


def cost_of_data(recipe: Recipe, sources: tuple[PlannedSource, ...], assumptions: Assumptions) -> DataCost:
    """Return disk and core-hours: from `sources` where all of them are there, else from `assumptions`."""
    total, context = recipe.train.total_tokens, recipe.data.context_tokens
    tokens = sum(source.tokens or 0 for source in sources)
    sized = all(source.bytes is not None for source in sources)
    documents = sum(source.documents or 0 for source in sources) if sized else 0
    length = tokens / documents if documents else assumptions.document_tokens
    texts = [source.text_bytes for source in sources]
    measured = all(text is not None for text in texts) and tokens > 0
    text_bytes = float(sum(text or 0 for text in texts)) if measured else total * assumptions.text_bytes_per_token
    bytes_per_token = token_dtype(recipe.model.vocab_size).itemsize + 1 / 8  # one word bit a token
    text_bytes_per_token = text_bytes / tokens if measured else assumptions.text_bytes_per_token
    segments = total / min(length, context)
    return DataCost(
        shards_bytes=sum(s.bytes or 0 for s in sources) if sized else total * bytes_per_token,
        shards_measured=sized,
        document_tokens=length,
        document_tokens_measured=bool(documents),
        ledger_segments=segments,
        ledger_bytes=(segments * LEDGER_BYTES[0], segments * LEDGER_BYTES[1]),
        text_bytes=text_bytes,
        text_bytes_per_token=text_bytes_per_token,
        text_bytes_measured=measured,
        preprocess_core_hours=text_bytes / (assumptions.preprocess_mb_per_second * 1e6) / 3600,
        clean=cost_of_cleaning(text_bytes, text_bytes / text_bytes_per_token / length, assumptions),
    )


def _find_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Return the recipe's tokenizer, or None if it is not there yet. Raises ConfigError when it is not the model's."""
    if not (Path(recipe.data.tokenizer) / TOKENIZER_FILE).is_file():
        return None
    return load_tokenizer(recipe.data.tokenizer, vocab_size=recipe.model.vocab_size)


def _describe_shards(path: str) -> PlannedSource:
    shards = ShardSet(path)
    files = [p.with_name(f"{p.name}.{suffix}") for p in shards.prefixes for suffix in SHARD_SUFFIXES]
    size = sum(file.stat().st_size for file in files if file.is_file())
    text_bytes = shards.manifest.get("totals", {}).get("text_bytes")
    return PlannedSource(path, shards.num_tokens, bytes=size, documents=shards.num_documents, text_bytes=text_bytes)
