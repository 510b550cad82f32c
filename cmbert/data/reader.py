"""Rows -> micro-batches. Step s holds the same rows and masks at any world size, micro-batch size and worker count."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cmbert.config.schema import DataConfig, MaskConfig
from cmbert.data.batches import UNIT_LENGTH_BINS, BatchGeometry, PackedBatch, StepData, StepFacts
from cmbert.data.blend import Blend, RowAddress
from cmbert.data.kernels import frame_segments
from cmbert.data.ledger import Segments, pack_record
from cmbert.data.masking import mask_batch
from cmbert.data.packing import SegmentTable
from cmbert.data.sources import open_blend, prove_ids
from cmbert.tokenizer import SPECIALS_PER_SEGMENT, Tokenizer
from cmbert.vocabulary import Vocabulary


class FoundRow(NamedTuple):
    """Where the segments of a row are."""

    address: RowAddress
    table: SegmentTable
    place: int
    """Number of the row in `table`."""

    @property
    def attention_cost(self) -> int:
        """Attention cost of the row: the sum of its segments' squared lengths, tokens^2."""
        return int(self.table.attention_cost[self.place])

    @property
    def part(self) -> slice:
        """The row's segments in the columns of `table`."""
        return slice(self.table.row_bounds[self.place], self.table.row_bounds[self.place + 1])


class AssembledRows(NamedTuple):
    """Rows before they are masked."""

    ids: np.ndarray  # (T,) int64
    unit_starts: np.ndarray  # (T,) bool
    segment_bounds: np.ndarray  # (segments + 1,) int64
    row_bounds: np.ndarray  # (rows + 1,) int64
    addresses: list[RowAddress]

    def unit_lengths(self, is_ordinary: np.ndarray) -> list[int]:
        """Return the maskable units by length: 1, 2, ..., UNIT_LENGTH_BINS or more tokens."""
        ordinary = is_ordinary[self.ids]
        begins = self.unit_starts | ~ordinary  # a special token ends the unit before it
        firsts = np.flatnonzero(begins)
        lengths = np.diff(firsts, append=len(begins))[ordinary[firsts]]
        return np.bincount(np.minimum(lengths, UNIT_LENGTH_BINS), minlength=UNIT_LENGTH_BINS + 1)[1:].tolist()


class RowReader:
    """Read any row of the run, packed and masked, as a pure function of its number."""

    def __init__(self, blend: Blend, mask: MaskConfig, vocabulary: Vocabulary, seed: int):
        self.blend, self.mask, self.vocabulary, self.seed = blend, mask, vocabulary, seed

    def find(self, rows: Sequence[int]) -> list[FoundRow]:
        """Look rows up by number."""
        addresses = [self.blend.address(row) for row in rows]
        return [FoundRow(a, *self.blend.sources[a.source].find(a.epoch, a.row)) for a in addresses]

    def assemble(self, rows: Sequence[int]) -> AssembledRows:
        """Lay rows back to back, `[CLS] tokens [SEP]` per segment."""
        found = self.find(rows)
        addresses = [row.address for row in found]
        context = self.blend.sources[0].context
        starts, places_of_row = [], []
        for number, row in enumerate(found):
            lengths = row.table.lengths[row.part]
            ends = number * context + np.cumsum(lengths + SPECIALS_PER_SEGMENT)
            places_of_row.append(ends - lengths - SPECIALS_PER_SEGMENT)
            starts.append(places_of_row[-1])
            filled = ends[-1] if len(ends) else number * context  # the last rows of a block may stay empty
            if filled < (number + 1) * context:
                starts.append(np.array([filled]))  # the segment of [PAD]
        num_positions = len(addresses) * context
        bounds = np.concatenate([*starts, [num_positions]])
        ids, unit_starts = np.full(num_positions, self.vocabulary.pad_id, np.int64), np.ones(num_positions, bool)
        for (address, table, _), part, places in zip(found, (row.part for row in found), places_of_row, strict=True):
            shards = table.shards[part]
            set_of_source = self.blend.sources[address.source].shards
            for shard in np.unique(shards).tolist():
                here = shards == shard
                tokens, words = set_of_source.shard_arrays(shard)
                frame_segments(
                    tokens, words, table.firsts[part][here], table.lengths[part][here], places[here], ids, unit_starts,
                    self.vocabulary.cls_id, self.vocabulary.sep_id,
                )  # fmt: skip
        return AssembledRows(ids, unit_starts, bounds, np.arange(len(addresses) + 1) * context, addresses)

    def segments(self, found: Sequence[FoundRow]) -> Segments:
        """Return the segments of documents that rows hold, as the ledger records them."""
        columns = []
        for row in found:
            documents = row.table.documents[row.part]
            sources = np.full(len(documents), row.address.source)
            columns.append((sources, documents, row.table.starts[row.part], row.table.lengths[row.part]))
        sources, documents, starts, lengths = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        order = np.lexsort((starts, documents, sources))
        return Segments(
            sources[order].astype(np.uint16),
            documents[order],
            starts[order].astype(np.int32),
            lengths[order].astype(np.int32),
        )

    def micro_batch(self, rows: Sequence[int], mask_rate: float) -> PackedBatch:
        """Join rows into one packed micro-batch."""
        return self.mask_rows(self.assemble(rows), mask_rate)

    def mask_rows(self, assembled: AssembledRows, mask_rate: float) -> PackedBatch:
        """Mask assembled rows; their ids are overwritten."""
        positions, targets = mask_batch(
            assembled.ids,
            assembled.unit_starts,
            assembled.row_bounds,
            rate=mask_rate,
            config=self.mask,
            vocabulary=self.vocabulary,
            seed=self.seed,
            indexes=assembled.addresses,
        )
        bounds = assembled.segment_bounds.astype(np.int32)
        places = np.arange(bounds[-1], dtype=np.int32)
        places -= np.repeat(bounds[:-1], np.diff(bounds))
        return PackedBatch(
            input_ids=torch.from_numpy(assembled.ids),
            cu_seqlens=torch.from_numpy(bounds),
            masked_positions=torch.from_numpy(positions),
            targets=torch.from_numpy(targets),
            positions=torch.from_numpy(places),
            longest=self.blend.sources[0].context,
        )


class StepBatches:
    """Item s is this rank's part of step s. `mask_rate` maps a step to its rate."""

    def __init__(self, reader: RowReader, geometry: BatchGeometry, mask_rate: Callable[[int], float]):
        self.reader, self.geometry, self.mask_rate = reader, geometry, mask_rate

    def __getitem__(self, step: int) -> StepData:
        rate, rows, reader = self.mask_rate(step), self.geometry.rows(step), self.reader
        found = reader.find(rows)
        parts = self.geometry.micro_batches(rows, [row.attention_cost for row in found])
        segments = reader.segments(found)
        assembled = [reader.assemble(part) for part in parts]
        num_sources = len(reader.blend.sources)
        lengths, counts = np.unique(segments.lengths + SPECIALS_PER_SEGMENT, return_counts=True)
        facts = StepFacts(
            first_row=rows[0],
            source_tokens=np.bincount(segments.sources, segments.lengths, num_sources).astype(np.int64).tolist(),
            num_segments=len(segments.documents),
            segment_lengths=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
            unit_lengths=assembled[0].unit_lengths(reader.vocabulary.is_ordinary),
            ledger=pack_record(step, rows[0], segments) if self.geometry.rank == 0 else b"",
        )
        row_sources = [torch.tensor([address.source for address in part.addresses]) for part in assembled]
        return StepData([reader.mask_rows(part, rate) for part in assembled], row_sources, facts)


def open_reader(
    data: DataConfig,
    mask: MaskConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    rows_per_step: int = 1,
    plan_folder: Path | None = None,
    prove: bool = True,
) -> RowReader:
    """Return the reader of a recipe's rows; see `open_blend`.

    prove: read the tokens of Megatron pairs once, alone, where `plan_folder` keeps no proof; else the caller must.
    """
    blend = open_blend(data, tokenizer, seed, rows_per_step=rows_per_step, plan_folder=plan_folder)
    for source in blend.sources if prove else ():
        prove_ids(source.shards, tokenizer, plan_folder)
    return RowReader(blend, mask, tokenizer.vocabulary, seed)
