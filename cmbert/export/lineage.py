"""What a run says of itself, and the runs it started from: the facts of a model card. What cannot be known is None."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.config.schema import Recipe, SourceConfig
from cmbert.data.shards.shard_set import ShardSet
from cmbert.environment import Environment
from cmbert.errors import CheckpointError, ConfigError, ShardError
from cmbert.evaluate.unigram import unigram_of_run
from cmbert.export.importing import licence_of, read_origin
from cmbert.files.json_types import read_as
from cmbert.files.names import real
from cmbert.model.config_json import is_model_folder
from cmbert.runs.branch import Branch, read_branch
from cmbert.runs.directory import PLAN_FOLDER, read_run_recipe, run_of
from cmbert.runs.merged import FACTS_FOLDER, Merge, read_merge
from cmbert.runs.metrics import SPENT, read_events, read_metrics, source_names


@dataclass(frozen=True)
class TrainedSource:
    """One shard set of a stage."""

    name: str
    weight: float
    """As in the recipe; 0 = in proportion to its rows."""
    documents: int | None
    """None, as all below: not known, since the shards are gone or are others now."""
    tokens: int | None
    tokens_read: int | None
    parts: dict[str, dict[str, int]]
    """Documents and tokens of each input, if its manifest tells them apart."""
    decontamination: dict[str, int] | None
    """Evaluation sets whose texts were looked for, and the documents dropped for each."""


@dataclass(frozen=True)
class StageFacts:
    """What one run says of itself up to a checkpoint."""

    name: str
    recipe: Recipe
    state: TrainState
    records: list[dict[str, Any]]
    """Of the steps before the checkpoint; empty if metrics.jsonl is not whole."""
    events: list[dict[str, Any]]
    environment: dict[str, Any]
    precision: str | None
    sources: list[TrainedSource]
    unigram_loss: float | None
    """Of the training tokens, nats; None, as for a source: not known any more."""
    merge: Merge | None
    """How its weights were averaged; None: they are one checkpoint's."""
    branch: Branch | None
    """What it is a branch of."""

    @property
    def own_tokens(self) -> int:
        """Tokens seen in this stage, without those of a branch's parent."""
        return self.state.tokens - (self.branch.state.tokens if self.branch else 0)

    @property
    def before(self) -> str:
        """The run or checkpoint that it started from, "" for a fresh start."""
        return str(self.branch.run) if self.branch else self.recipe.train.init_from


@dataclass(frozen=True)
class Ancestor:
    """The model folder that a first stage started from: imported, or an export whose runs are not looked for."""

    name: str
    licence: str | None
    """None: its card names none."""


@dataclass(frozen=True)
class Lineage:
    """The stages that made a model."""

    stages: list[StageFacts]
    """First stage first."""
    lost: str | None
    """Name of the run that the first of them started from, if that run cannot be read any more."""
    ancestor: Ancestor | None = None
    """What the first of them started from, if that is a model folder."""


def read_lineage(path: Path) -> Lineage:
    """Read a run, or a checkpoint of one, and the runs it came from as far as they are still there.

    Of a run that train.init_from names its latest checkpoint counts, of a branch's parent what it was at that step.
    Raises CheckpointError if `path` is none.
    """
    checkpoint = require_checkpoint(path)
    stages = [_read_stage(run_of(checkpoint), read_state(checkpoint))]
    seen = {real(path)}
    while stages[0].before:
        earlier = Path(stages[0].before)
        if real(earlier) in seen:
            return Lineage(stages, earlier.name)
        seen.add(real(earlier))
        if is_model_folder(earlier):
            return Lineage(stages, None, _ancestor(earlier))
        try:
            if branch := stages[0].branch:
                stages.insert(0, _read_stage(branch.run, branch.state))
            else:
                checkpoint = require_checkpoint(earlier)
                stages.insert(0, _read_stage(run_of(checkpoint), read_state(checkpoint)))
        except (CheckpointError, ConfigError):  # moved, pruned, or of another version: the card says it is not known
            return Lineage(stages, earlier.name)
    return Lineage(stages, None)


def _ancestor(folder: Path) -> Ancestor:
    if origin := read_origin(folder):
        return Ancestor(origin["name"], origin["licence"])
    return Ancestor(real(folder).name, licence_of(folder))


def _read_stage(folder: Path, state: TrainState) -> StageFacts:
    merge = read_merge(folder)
    run = folder / FACTS_FOLDER if merge else folder
    recipe, branch = read_run_recipe(folder), read_branch(run)
    records = [record for record in read_metrics(run, needed=("real_tokens", *SPENT)) if record["step"] < state.step]
    if len(records) != state.step - (branch.state.step if branch else 0):
        records = []
    names = source_names([source.path for source in recipe.data.sources])
    opened = [_open_source(source, index, state, run) for index, source in enumerate(recipe.data.sources)]
    sources = [
        _describe(index, Path(name).name, source.weight, shards, records)
        for index, (name, source, shards) in enumerate(zip(names, recipe.data.sources, opened, strict=True))
    ]
    return StageFacts(
        name=real(folder).name,
        recipe=recipe,
        state=state,
        records=records,
        events=[event for event in read_events(run) if event["step"] <= state.step],
        environment=_read_json(run / "environment.json", Environment),
        precision=_precision(_read_json(run / "ds_config.json", dict[str, Any])),
        sources=sources,
        unigram_loss=_unigram(folder, opened, sources, recipe),
        merge=merge,
        branch=branch,
    )


def _read_json(path: Path, hint: Any) -> Any:
    remedy = "remove it, and the model card leaves out what it said"
    return read_as(path, hint, error=CheckpointError, remedy=remedy) or {}


def _precision(deepspeed: Mapping[str, Any]) -> str | None:
    if not deepspeed:
        return None
    return next((f"{kind} with fp32 master weights" for kind in ("bf16", "fp16") if _is_on(deepspeed, kind)), "fp32")


def _is_on(deepspeed: Mapping[str, Any], kind: str) -> bool:
    section = deepspeed.get(kind)
    return isinstance(section, dict) and section.get("enabled") is True


def _open_source(source: SourceConfig, index: int, state: TrainState, run: Path) -> ShardSet | None:
    """Return the shards that a stage read, None if they are gone or are others now."""
    try:
        shards = ShardSet(source.path)
        shards.recall_proof(run / PLAN_FOLDER)
    except ShardError:
        return None
    return shards if [shards.fingerprint] == state.shard_fingerprints[index : index + 1] else None


def _describe(
    index: int, name: str, weight: float, shards: ShardSet | None, records: list[dict[str, Any]]
) -> TrainedSource:
    counts = [record.get("source_tokens", [])[index : index + 1] for record in records]
    tokens_read = sum(count[0] for count in counts) if counts and all(counts) else None
    if shards is None:
        return TrainedSource(name, weight, None, None, tokens_read, {}, None)
    documents, tokens = sum(shards.shard_documents), sum(shards.shard_tokens)
    parts, dropped = shards.manifest.get("sources", {}), shards.manifest.get("decontamination")
    return TrainedSource(name, weight, documents, tokens, tokens_read, parts, dropped)


def _unigram(
    run: Path, opened: Sequence[ShardSet | None], sources: Sequence[TrainedSource], recipe: Recipe
) -> float | None:
    shards = [found for found in opened if found is not None]
    amounts = [source.tokens_read or 0 for source in sources] if len(sources) > 1 else [1]
    if len(shards) < len(opened) or not any(amounts):
        return None
    return unigram_of_run(run, shards, amounts, recipe.model.vocab_size)
