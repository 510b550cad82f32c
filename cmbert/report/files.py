"""What `cmbert report` reads of a run, proved: the drawing code meets only what it expects."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from cmbert.config.load import read_toml
from cmbert.environment import Environment
from cmbert.errors import CheckpointError
from cmbert.files.json_types import misfit, read_as
from cmbert.files.names import real
from cmbert.html.charts import Stage
from cmbert.report.steps import PHASE_COLUMNS
from cmbert.runs.branch import read_branch
from cmbert.runs.metrics import METRICS_FILE, read_events, source_names

COLUMNS: tuple[str, ...] = ("step", "tokens", "loss", "learning_rate", "mask_rate", "masked_tokens", "real_tokens")
COLUMNS += ("realised_mask_rate", "grad_norm", "step_seconds", "data_wait_seconds", "tokens_per_second", "fill_rate")
COLUMNS += ("time", "skipped_rows")
LISTS = ("source_tokens", "unit_lengths")
OPTIONAL_COLUMNS: tuple[str, ...] = ("heldout_loss", "heldout_accuracy", "peak_memory_bytes")  # of newer runs
OPTIONAL_COLUMNS += ("flops_per_second", "mfu", *PHASE_COLUMNS)
REMEDY = "remove it or write it again"


class Bucket(TypedDict):
    """Held-out loss of some positions."""

    start: int
    end: int
    masked_tokens: int
    loss: float | None


class Evaluation(TypedDict, total=False):
    """What `cmbert eval` writes, as far as the page shows it."""

    heldout_loss: float | None
    unigram_loss: float | None
    masked_accuracy: float | None
    by_position: list[Bucket]


class Summary(Evaluation):
    """What the quickstart writes about itself."""

    seconds: NotRequired[dict[str, float] | None]


class Prediction(TypedDict, total=False):
    """A guess for a mask."""

    token: str
    score: float


class FilledMask(TypedDict, total=False):
    """A sentence with a mask and what the model expects there."""

    text: str
    filled: str
    predictions: list[Prediction]


class SourceSection(TypedDict):
    """A source of a recipe."""

    path: str


class DataSection(TypedDict):
    """A recipe's data, as far as the page needs it."""

    context_tokens: int
    sources: NotRequired[list[SourceSection]]


class TrainSection(TypedDict):
    """A recipe's training, likewise; it may hold more keys."""

    init_from: NotRequired[str]


class RecipeFile(TypedDict, total=False):
    """The recipe of a run, of whatever version."""

    model: dict[str, Any]
    data: DataSection
    schedule: dict[str, Any]
    mask: dict[str, Any]
    train: TrainSection


def read_stage(folder: Path, records: list[dict]) -> Stage:
    """Return a run as read, with its records; where it stands among others is not known yet.

    Raises CheckpointError for a malformed file.
    """
    branch = read_branch(folder)
    columns = {name: np.array([record[name] for record in records], dtype=np.float64) for name in COLUMNS}
    columns["tokens"] -= branch.state.tokens if branch else 0
    for name in OPTIONAL_COLUMNS:
        columns[name] = np.array([record.get(name, np.nan) for record in records], dtype=np.float64)
    recipe = _read_recipe(folder / "resolved.toml")
    source_tokens, unit_lengths = (_sums(folder, records, name) for name in LISTS)
    sources = source_names([source["path"] for source in recipe.get("data", {}).get("sources", [])])
    sources = sources or [str(number) for number in range(len(source_tokens))]
    losses = [record.get("source_loss") or [None] * len(sources) for record in records]
    if {len(sources)} != {len(source_tokens), *map(len, losses)}:
        raise CheckpointError(
            f"{folder / METRICS_FILE}: figures of another number of sources than the {len(sources)} of the recipe; "
            "remove the lines that are not this run's"
        )
    return Stage(
        name=real(folder).name,
        folder=folder,
        number=1,
        start_tokens=0,
        columns=columns,
        recipe=recipe,
        environment=read_optional(folder / "environment.json", Environment),
        evaluation=read_optional(folder / "eval.json", Evaluation),
        sources=sources,
        source_loss=np.array(losses, dtype=np.float64),
        source_tokens=source_tokens,
        unit_lengths=unit_lengths,
        events=read_events(folder),
        branch_of=str(branch) if branch else "",
        branch_tokens=branch.state.tokens if branch else 0,
    )


def _sums(folder: Path, records: list[dict], name: str) -> list[int]:
    if len({len(record[name]) for record in records}) > 1:
        raise CheckpointError(
            f"{folder / METRICS_FILE}: {name} of different lengths; remove the lines that are not this run's"
        )
    return [sum(column) for column in zip(*(record[name] for record in records), strict=True)]


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    recipe = read_toml(path)
    if fault := misfit(recipe, RecipeFile):
        raise CheckpointError(f"{path}: {fault}; {REMEDY}")
    return recipe


def read_optional(path: Path, hint: Any) -> Any:
    """Return the JSON value of a file, an empty one if there is no file. Raises CheckpointError if malformed."""
    found = read_as(path, hint, error=CheckpointError, remedy=REMEDY)
    return {} if found is None else found
