"""One model on several held-out shard sets, contexts and units: what `cmbert eval` prints as one table.

A set is the smallest thing that can be scored alone: a manifest counts its sources, but nothing says which document
came from which. For figures by source or domain, preprocess each into a set of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cmbert.data.sources import open_shards
from cmbert.errors import ConfigError
from cmbert.evaluate.pseudo_perplexity import Score, Unit, evaluate
from cmbert.evaluate.table import markdown_table
from cmbert.files.names import real
from cmbert.model.heads import MaskedLanguageModel
from cmbert.tokenizer import Tokenizer

LEAST_CONTEXT = 16  # tokens: less holds no text beside [CLS] and [SEP] worth a score
ABSENT = "–"


@dataclass(frozen=True)
class SetFacts:
    """What the manifest of a set says about its text under this tokenizer."""

    name: str
    path: str
    documents: int
    tokens: int
    characters_per_token: float | None
    """None for a Megatron shard, which has no manifest."""
    straddle_rate: float | None
    """Share of the word boundaries that lie inside a token, in [0, 1]; None likewise."""


@dataclass(frozen=True)
class SetScore:
    """A model's score on one set."""

    facts: SetFacts
    score: Score

    def as_dict(self) -> dict:
        """Return plain values for JSON."""
        facts = asdict(self.facts)
        return {"data": facts.pop("name"), **facts, **self.score.as_dict()}


def name_sets(given: Sequence[str]) -> dict[str, Path]:
    """Return shard sets by name, from DIR or NAME=DIR; a set without a name has that of its folder.

    Raises ConfigError when two have the same name or a name or folder is empty.
    """
    sets: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name = name if equals else real(Path(text)).name
        if not name or not folder:
            raise ConfigError(f"--data: {text!r} is neither DIR nor NAME=DIR")
        if name in sets:
            raise ConfigError(f"--data: two sets are named {name!r}; name them: --data one={sets[name]} other={folder}")
        sets[name] = Path(folder)
    return sets


def read_facts(name: str, path: Path, tokenizer: Tokenizer) -> SetFacts:
    """Read what is known of a set without scoring it; ShardError as `open_shards`."""
    shards = open_shards(path, tokenizer)
    totals, straddle = shards.manifest.get("totals", {}), shards.manifest.get("straddle", {})
    characters = totals.get("characters")
    return SetFacts(
        name=name,
        path=str(path),
        documents=shards.num_documents,
        tokens=shards.num_tokens,
        characters_per_token=None if characters is None else characters / shards.num_tokens,
        straddle_rate=straddle.get("rate"),
    )


def evaluate_sets(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    sets: dict[str, Path],
    *,
    contexts: Sequence[int],
    units: Sequence[Unit],
    max_rows: int | None = None,
) -> Iterator[SetScore]:
    """Yield the score of every set, context and unit, in this order; every set is opened before the first is scored.

    Raises ShardError for a set that is none or of another tokenizer, ConfigError for a context that is too short.
    """
    if short := [context for context in contexts if context < LEAST_CONTEXT]:
        raise ConfigError(f"--context: {short[0]} must be at least {LEAST_CONTEXT} tokens")
    facts = {name: read_facts(name, path, tokenizer) for name, path in sets.items()}
    for name, path in sets.items():
        for context in contexts:
            for unit in units:
                score = evaluate(model, tokenizer, path, context=context, unit=unit, max_rows=max_rows)
                yield SetScore(facts[name], score)


def score_table(scores: Sequence[SetScore]) -> str:
    """Return a Markdown table, a row per set, context and unit."""
    header = ["data", "documents", "characters/token", "straddled", "context", "masked", "tokens", "loss, nats"]
    header += ["pseudo-perplexity", "bits/character", "accuracy"]
    rows = []
    for facts, score in ((found.facts, found.score) for found in scores):
        row = [facts.name, f"{facts.documents:,}"]
        row += [ABSENT if facts.characters_per_token is None else f"{facts.characters_per_token:.3f}"]
        row += [ABSENT if facts.straddle_rate is None else f"{100 * facts.straddle_rate:.1f} %"]
        row += [f"{score.context_tokens:,}", f"{score.unit}s", f"{score.masked_tokens:,}", f"{score.heldout_loss:.4f}"]
        row += [
            f"{score.pseudo_perplexity:,.1f}",
            f"{score.bits_per_character:.3f}",
            f"{100 * score.masked_accuracy:.2f} %",
        ]
        rows.append(row)
    return markdown_table(header, rows)


def position_table(scores: Sequence[SetScore]) -> str:
    """Return a Markdown table of the loss (nats) by position in the segment (tokens): a row per set, context, unit."""
    places = sorted({bucket.start for found in scores for bucket in found.score.by_position})
    rows = []
    for found in scores:
        losses = {bucket.start: f"{bucket.loss:.4f}" for bucket in found.score.by_position}
        row = [found.facts.name, f"{found.score.context_tokens:,}", f"{found.score.unit}s"]
        rows.append([*row, *(losses.get(place, ABSENT) for place in places)])
    return markdown_table(["data", "context", "masked", *(f"{place:,}+" for place in places)], rows)
