"""What the reader gives: packed micro-batches with what is known of them, and their sizes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cmbert.data.balance import balance

UNIT_LENGTH_BINS = 8  # the last one holds longer units, too


class PackedBatch(NamedTuple):
    """One micro-batch: segments of several rows back to back, in the order of the model's arguments.

    T is rows x context, the same in every step, so that a compiled model need not be compiled again. What a row leaves
    unfilled, a hundredth or less, is a segment of [PAD] of its own: nothing sees it, nothing in it is predicted.
    """

    input_ids: torch.Tensor  # (T,) int64
    cu_seqlens: torch.Tensor  # (P + 1,) int32, bounds of the segments; attention never crosses them
    masked_positions: torch.Tensor  # (M,) int64, into input_ids
    targets: torch.Tensor  # (M,) int64
    positions: torch.Tensor  # (T,) int32, counted from the start of each segment
    longest: int  # tokens of a row, which no segment exceeds: the same in every step

    def to(self, device: torch.device) -> "PackedBatch":
        """Move every tensor, once; nothing waits if they are pinned."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        ids, bounds, masked, targets, positions, longest = self
        return PackedBatch(move(ids), move(bounds), move(masked), move(targets), move(positions), longest)

    def pin(self) -> "PackedBatch":
        """Copy every tensor into memory from which a GPU takes it while the host goes on."""
        return PackedBatch._make([*(tensor.pin_memory() for tensor in self[:-1]), self.longest])


class StepFacts(NamedTuple):
    """What is worth recording of a step's data, over all ranks unless it says otherwise."""

    first_row: int
    """Number of its first row in the data; skipped rows count."""
    source_tokens: list[int]
    """Tokens of each source, specials not counted."""
    num_segments: int
    """Segments of documents, each with a [CLS] and a [SEP]."""
    segment_lengths: dict[int, int]
    """How many of these segments there are of each length; tokens, [CLS] and [SEP] among them."""
    unit_lengths: list[int]
    """Maskable units of this rank's first micro-batch by length: 1, 2, ..., UNIT_LENGTH_BINS or more tokens."""
    ledger: bytes
    """The step's record; empty on other ranks than 0."""


class StepData(NamedTuple):
    """One rank's part of a step."""

    micro_batches: list[PackedBatch]
    row_sources: list[torch.Tensor]
    """Source of each row of each micro-batch, (rows,) int64."""
    facts: StepFacts

    def to(self, device: torch.device) -> "StepData":
        """Move the whole step: a few bytes a token, beside which a micro-batch's activations are thousands."""
        return StepData(
            [batch.to(device) for batch in self.micro_batches],
            [sources.to(device, non_blocking=True) for sources in self.row_sources],
            self.facts,
        )

    def pin(self) -> "StepData":
        """Copy every tensor into pinned memory."""
        row_sources = [sources.pin_memory() for sources in self.row_sources]
        return StepData([batch.pin() for batch in self.micro_batches], row_sources, self.facts)


SkippedRows = tuple[tuple[int, int], ...]
"""Rows [first, last) of the data that no step gets: ascending, apart from each other."""


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> SkippedRows:
    """Return ranges in ascending order, those that touch or overlap as one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def data_row(row: int, skipped_rows: SkippedRows) -> int:
    """Return which row of the data is the run's row number `row`."""
    for first, last in skipped_rows:
        row += last - first if row >= first else 0
    return row


@dataclass(frozen=True)
class BatchGeometry:
    """How the rows of a step are balanced over ranks and micro-batches."""

    step_rows: Callable[[int], range]
    """Numbers of the rows of a step, as they would be if none were skipped."""
    micro_batch_rows: int
    rank: int
    world_size: int
    skipped_rows: SkippedRows = ()

    def rows(self, step: int) -> Sequence[int]:
        """Return the numbers in the data of the rows of a step, over all ranks, ascending."""
        rows = self.step_rows(step)
        first, last = data_row(rows[0], self.skipped_rows), data_row(rows[-1], self.skipped_rows)
        if last - first == len(rows) - 1:
            return range(first, last + 1)
        return [data_row(row, self.skipped_rows) for row in rows]  # in a batch ramp a gap may fall into a step

    def micro_batches(self, rows: Sequence[int], costs: Sequence[int]) -> list[list[int]]:
        """Return this rank's micro-batches of a step's `rows`; `costs`: attention cost of each row.

        Rows are balanced over the ranks, then over each rank's micro-batches, so that none waits long for another; the
        loss does not depend on who has which row.
        """
        mine = balance(costs, self.world_size)[self.rank]
        own_costs = [costs[index] for index in mine]
        parts = balance(own_costs, len(rows) // (self.micro_batch_rows * self.world_size))
        return [sorted(rows[mine[index]] for index in part) for part in parts]
