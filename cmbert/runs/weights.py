"""Which checkpoint a run's weights are taken from: chosen here for every command, and said in the log."""

import functools
import logging
from pathlib import Path

from cmbert.checkpoint.files import DAMAGED_SUFFIX, require_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.runs.directory import read_run_recipe, run_of
from cmbert.runs.merged import described_steps, read_merge
from cmbert.schedule import Schedule

logger = logging.getLogger(__name__)


def choose_weights(path: Path) -> Path:
    """Return the checkpoint that `path`, a run or a checkpoint, means, and say which. Raises CheckpointError."""
    checkpoint = require_checkpoint(path)
    _say(checkpoint, checkpoint == path)
    return checkpoint


def progress_of(checkpoint: Path) -> tuple[int, int]:
    """Return the steps done at a checkpoint, and those of its whole run."""
    return read_state(checkpoint).step, Schedule.of(read_run_recipe(run_of(checkpoint))).num_steps


@functools.cache  # a command may open a model more than once
def _say(checkpoint: Path, is_named: bool) -> None:
    if merge := read_merge(checkpoint):
        logger.info("weights of %s (merged from %s)", checkpoint, described_steps(merge))
        return
    step, last_step = progress_of(checkpoint)
    if is_named:
        why = ""
    elif step < last_step:
        why = ", the newest: the run is not finished"
    else:
        why = ", the run's last"
    damaged = [path.name for path in checkpoint.parent.glob(f"step_*{DAMAGED_SUFFIX}*") if path.name > checkpoint.name]
    passed_over = f"; newer, but damaged: {', '.join(sorted(damaged))}" if damaged and not is_named else ""
    logger.info("weights of %s (step %s of %s%s%s)", checkpoint, f"{step:,}", f"{last_step:,}", why, passed_over)
