"""Where a run begins in its data: at the beginning, or where the stage before ended in the same rows."""

import logging
from pathlib import Path

from cmbert.checkpoint.files import require_checkpoint
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.cluster.distributed import from_first_rank
from cmbert.config.schema import Recipe
from cmbert.data.reader import RowReader
from cmbert.model.config_json import is_model_folder
from cmbert.runs.directory import read_run_recipe, run_of

logger = logging.getLogger(__name__)


def begin_reading(recipe: Recipe, reader: RowReader, state: TrainState | None) -> None:
    """Let `reader` begin where the run of checkpoint `state` did, or where a new one is to. All ranks call this."""
    if state is None:
        reader.blend.begin_at(from_first_rank(lambda: rows_after_stage_before(recipe, reader)))
        return
    reader.blend.go_on(state.rows, state.source_rows, state.first_rows, state.first_row)


def rows_after_stage_before(recipe: Recipe, reader: RowReader) -> list[int]:
    """Return at which of its rows each source begins: where train.init_from ended if it read the same rows, else 0.

    The same rows: the same shards in the same place of data.sources, context, blocks and seed. Another context packs
    other rows, among which what was read cannot be told apart.
    """
    begins = [0] * len(reader.blend.sources)
    if not recipe.train.init_from or is_model_folder(Path(recipe.train.init_from)):
        return begins
    checkpoint = require_checkpoint(Path(recipe.train.init_from))
    before, state = read_run_recipe(run_of(checkpoint)), read_state(checkpoint)
    if _order(before) != _order(recipe):
        return begins
    ours = [source.shards.fingerprint for source in reader.blend.sources]
    theirs = state.source_rows or [state.rows][: len(state.shard_fingerprints) == 1]  # before it was recorded
    for index, (mine, fingerprint, rows) in enumerate(zip(ours, state.shard_fingerprints, theirs, strict=False)):
        begins[index] = rows if mine == fingerprint else 0
    if any(begins):
        logger.info("reading on where %s ended, at rows %s of data.sources", checkpoint, begins)
    return begins


def _order(recipe: Recipe) -> tuple[int, int, int, int]:
    """What decides which rows there are and in which order they come."""
    data = recipe.data
    return data.context_tokens, data.shuffle_block_rows, data.shuffle_blocks, recipe.train.seed
