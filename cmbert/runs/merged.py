"""A folder of merged weights: a checkpoint of weights alone that has its run's recipe and record with it.

model.safetensors, state.json, MANIFEST.json   the mean, and how far the newest of its checkpoints had come
resolved.toml                                  the run's recipe: whatever takes a checkpoint finds it beside it
merge.json                                     which steps, and what each and their mean scored of held-out text
run/                                           the run's record (metrics.jsonl, ...), for the model card
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cmbert.checkpoint.state import TrainState
from cmbert.checkpoint.weights import write_weights
from cmbert.config.load import write_resolved
from cmbert.config.schema import Recipe
from cmbert.errors import CheckpointError
from cmbert.files.json_types import read_as
from cmbert.files.whole import write_json
from cmbert.runs.directory import RECIPE_FILE
from cmbert.runs.metrics import EVENTS_FILE, METRICS_FILE

if TYPE_CHECKING:
    import torch

MERGE_FILE = "merge.json"
FACTS_FOLDER = "run"  # not beside the weights: `cmbert report` would take the folder for a run and count it twice
FACTS = (METRICS_FILE, EVENTS_FILE, "environment.json", "ds_config.json")


class Scored(TypedDict):
    """What weights scored of held-out text."""

    heldout_loss: float
    """Nats per masked token."""
    masked_accuracy: float


class MergedStep(Scored):
    """A checkpoint that was averaged."""

    step: int
    share: float
    """Of its weights in the mean, above 0."""


class Merge(TypedDict):
    """The contents of merge.json."""

    run: str
    """The name of its directory."""
    heldout: str
    """The name of the shard set."""
    masked_tokens: int
    steps: list[MergedStep]
    """Oldest first."""
    merged: Scored


def write_merged(
    folder: Path, weights: dict[str, "torch.Tensor"], state: TrainState, recipe: Recipe, merge: Merge, run: Path
) -> None:
    """Fill `folder`, which is built aside. weights, state: as `write_weights` takes them."""
    write_weights(folder, weights, state)
    write_resolved(recipe, folder / RECIPE_FILE)
    write_json(folder / MERGE_FILE, merge)
    (folder / FACTS_FOLDER).mkdir()
    for name in FACTS:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / FACTS_FOLDER / name)


def read_merge(folder: Path) -> Merge | None:
    """Return how the weights of a folder were merged, None if they are a run's own. Raises CheckpointError."""
    return read_as(folder / MERGE_FILE, Merge, error=CheckpointError, remedy="merge the checkpoints again")


def described_steps(merge: Merge) -> str:
    """Return what was averaged as people read it, with shares where they differ: "steps 800, 1,000 of stage1"."""
    steps = merge["steps"]
    equal = len({part["share"] for part in steps}) == 1
    named = (f"{part['step']:,}" + ("" if equal else f" ({100 * part['share']:.3g} %)") for part in steps)
    return f"steps {', '.join(named)} of {merge['run']}"
