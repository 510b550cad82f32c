"""What one rank holds while it trains."""

import logging
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cmbert.checkpoint.state import Progress
from cmbert.checkpoint.writer import CheckpointWriter
from cmbert.cluster.distributed import Launch
from cmbert.cluster.watchdog import Watchdog
from cmbert.config.schema import Recipe
from cmbert.data.ledger import LedgerWriter
from cmbert.data.reader import RowReader
from cmbert.runs.branch import read_branch
from cmbert.runs.metrics import MetricsWriter
from cmbert.schedule import Schedule
from cmbert.tokenizer import Tokenizer
from cmbert.train.guards import Guard
from cmbert.train.heldout import Heldout
from cmbert.train.reporting import Reporter
from cmbert.train.start import Resume
from cmbert.train.step_figures import LaunchedStep
from cmbert.zero.step_timer import StepTimer

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """Everything one rank holds while it trains."""

    recipe: Recipe
    schedule: Schedule
    directory: Path
    launch: Launch
    device: torch.device
    engine: Any
    reader: RowReader
    tokenizer: Tokenizer
    heldout: list[Heldout]
    writer: CheckpointWriter
    watchdog: Watchdog
    guard: Guard
    timer: StepTimer
    progress: Progress
    last_step: int
    """Of this call."""
    reporter: Reporter | None = None
    """Only rank 0 has one."""
    num_rewinds: int = 0
    """Of this call."""
    launched: deque[LaunchedStep] = field(default_factory=deque)
    """Steps done whose figures nobody has read, oldest first."""

    @property
    def step(self) -> int:
        """Steps launched; the next one has this number."""
        return self.progress.step

    @step.setter
    def step(self, step: int) -> None:
        self.progress = replace(self.progress, step=step)

    @property
    def is_finished(self) -> bool:
        return self.step == self.schedule.num_steps

    def event(self, kind: str, text: str, step: int | None = None) -> None:
        """Say and record what does not happen in every step. step: default, the next one to be launched."""
        logger.warning("%s", text)
        if self.reporter is not None:
            self.reporter.metrics.record_event(kind, self.step if step is None else step, text)

    def close(self) -> None:
        """End what this rank has running, after a good end, and let the next run begin."""
        try:
            self.writer.close()
            if self.reporter is not None:
                self.reporter.close()
        except OSError:
            if not self.writer.lease.is_lost:  # else the files were replaced, which NFS calls stale
                raise
        finally:
            self.writer.lease.release()


def guard_of(engine: Any, recipe: Recipe, resume: Resume) -> Guard:
    """Return a guard that remembers what the checkpoint says."""
    return Guard(recipe.guards, engine.device, resume.state.guard if resume.state else None)


def open_reporter(run: Run) -> Reporter | None:
    """Rewind metrics and ledger to the run's step and return what writes them from there on; None but on rank 0."""
    if run.launch.rank > 0:
        return None
    lease = run.writer.lease
    metrics = MetricsWriter(run.directory, run.step, run.recipe)
    branch = read_branch(run.directory)
    ledger = LedgerWriter(run.directory, run.step, lease.check, begin=branch.state.step if branch else 0)
    return Reporter(
        run.recipe,
        run.schedule,
        run.reader,
        metrics,
        ledger,
        lease,
        run.step,
        run.last_step,
        run.launch.world_size,
        run.device,
    )
