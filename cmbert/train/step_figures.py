"""What a step tells of itself: gathered on the device, by one all-reduce, and read by the host a step later.

A read that waits for the step before finds it done while the device has the next one to do, so nothing stands still.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from cmbert.cluster.distributed import Launch, of_every_rank, to_device
from cmbert.data.batches import StepFacts
from cmbert.schedule import Schedule
from cmbert.tokenizer import SPECIALS_PER_SEGMENT
from cmbert.train.guards import Judgement
from cmbert.train.source_loss import SourceLoss, mean_source_loss
from cmbert.zero.step_timer import StepTimes


class RankState(NamedTuple):
    """What every rank wants all others to know after each step."""

    stopping: float
    """Whether it was asked to stop."""
    writing: float
    """Whether it still writes a checkpoint."""
    peak_memory_bytes: float


class StepSums(NamedTuple):
    """A step's sums over all ranks, float64 on the device."""

    loss: torch.Tensor  # (): nats, summed over the masked tokens
    num_correct: torch.Tensor  # ()
    sources: torch.Tensor  # (2 S,): loss and masked tokens of each source
    states: torch.Tensor  # (3,): of RankState, how many ranks stop and write, and the most memory of any


def sum_step(
    loss: torch.Tensor, num_correct: torch.Tensor, source_loss: SourceLoss, state: RankState, launch: Launch
) -> StepSums:
    """Add up what the ranks have found in a step. All ranks call this; on a GPU nobody waits."""
    own = [loss.double().view(1), num_correct.double().view(1), source_loss.totals(), to_device(state, loss.device)]
    rows = of_every_rank(torch.cat(own), launch)
    sums, size = rows.sum(0), len(RankState._fields)
    states = torch.cat([sums[-size:-1], rows[:, -1].amax(0, keepdim=True)])
    return StepSums(sums[0], sums[1], sums[2:-size], states)


class StepResult(NamedTuple):
    """A step that is over."""

    record: dict[str, Any]
    """For metrics.jsonl."""
    judgement: Judgement
    state: RankState
    """Over all ranks."""


@dataclass
class LaunchedStep:
    """A step given to the device, whose figures nobody has read yet."""

    step: int
    facts: StepFacts
    wait_seconds: float
    """How long the trainer waited for its data."""
    figures: torch.Tensor  # of `figures_of`, float64 on the host, there when `times` is over
    times: StepTimes
    notes: dict[str, float] = field(default_factory=dict)
    """Figures of what followed it: an evaluation."""

    def result(self, schedule: Schedule) -> StepResult:
        """Wait for the step and return what became of it."""
        self.times.wait()
        masked, loss, correct, *rest = self.figures.tolist()
        size = len(Judgement._fields)
        judgement, states = Judgement(*rest[:size]), RankState(*rest[-len(RankState._fields) :])
        facts, maskable_tokens = self.facts, sum(self.facts.source_tokens)
        record = {
            "step": self.step,
            "tokens": schedule.tokens_before(self.step + 1),
            "loss": loss,
            "accuracy": correct / max(masked, 1.0),
            "learning_rate": schedule.learning_rate(self.step),
            "mask_rate": schedule.mask_rate(self.step),
            "masked_tokens": masked,
            "real_tokens": maskable_tokens + SPECIALS_PER_SEGMENT * facts.num_segments,
            "realised_mask_rate": masked / max(maskable_tokens, 1.0),
            "grad_norm": judgement.norm,
            **mean_source_loss(rest[size : -len(RankState._fields)]),
            **self.times.seconds(),
            **self.notes,
            "peak_memory_bytes": int(states.peak_memory_bytes),
            # A device that had work left did not wait.
            "data_wait_seconds": min(self.wait_seconds, self.times.idle_seconds()),
        }
        return StepResult(record, judgement, states)


def figures_of(masked: torch.Tensor, mean_loss: torch.Tensor, sums: StepSums, judgement: Judgement) -> torch.Tensor:
    """Return a step's figures in the order that `LaunchedStep.result` reads, float64 on the device."""
    head = torch.stack([masked, mean_loss, sums.num_correct, *judgement])
    return torch.cat([head, sums.sources, sums.states])


def send_to_host(figures: torch.Tensor) -> torch.Tensor:
    """Return figures on the host, there once the device has done all before it; on a GPU nobody waits."""
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=figures.is_cuda)
    return host.copy_(figures, non_blocking=True)
