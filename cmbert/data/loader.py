"""Rows -> micro-batches. Step s holds the same rows and masks at any world size, micro-batch size and worker count."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cmbert.config.schema import DataConfig, MaskConfig
from cmbert.data.blend import Blend, RowAddress
from cmbert.data.masking import MaskedRow, mask_row
from cmbert.data.packing import SPECIALS_PER_PIECE, SourceRows
from cmbert.data.shards import ShardSet
from cmbert.errors import ConfigError, ShardError
from cmbert.seeding import generator
from cmbert.tokenizer import CLS_ID, SEP_ID, Tokenizer

PREFETCH_STEPS = 2  # steps each loader process keeps ready


class PackedBatch(NamedTuple):
    """One micro-batch: pieces of several rows back to back, no padding.

    The tokens a row leaves unfilled are not in the batch, so T is at most rows x context.
    """

    input_ids: torch.Tensor  # (T,) int64
    cu_seqlens: torch.Tensor  # (P + 1,) int32, bounds of the pieces; attention never crosses them
    masked_positions: torch.Tensor  # (M,) int64, into input_ids
    targets: torch.Tensor  # (M,) int64


@dataclass(frozen=True)
class BatchGeometry:
    """Which rows of a step one rank takes: micro-batches of `micro_batch_rows`, dealt to the ranks in turn."""

    rows_per_step: int
    micro_batch_rows: int
    rank: int
    world_size: int

    def micro_batches(self, step: int) -> list[range]:
        """Return this rank's micro-batches of a step as ranges of run-wide row numbers."""
        first = step * self.rows_per_step
        starts = range(first, first + self.rows_per_step, self.micro_batch_rows)
        return [range(start, start + self.micro_batch_rows) for start in starts[self.rank :: self.world_size]]


class RowReader:
    """Read any row of the run, packed and masked, as a pure function of its number."""

    def __init__(self, blend: Blend, mask: MaskConfig, vocab_size: int, seed: int):
        self.blend, self.mask, self.vocab_size, self.seed = blend, mask, vocab_size, seed

    def row(self, number: int, mask_rate: float) -> tuple[MaskedRow, list[int]]:
        """Return row `number` masked at `mask_rate`, and the lengths of its pieces with [CLS] and [SEP], in tokens."""
        address = self.blend.address(number)
        tokens, unit_starts, maskable, lengths = self.assemble(address)
        random = generator(self.seed, "mask", *address)
        masked = mask_row(
            tokens, unit_starts, maskable, rate=mask_rate, config=self.mask, vocab_size=self.vocab_size, random=random
        )
        return masked, lengths

    def assemble(self, address: RowAddress) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Lay out a row as `[CLS] tokens [SEP]` per piece: tokens int64, unit_starts, maskable bool, lengths."""
        source = self.blend.sources[address.source]
        pieces = source.row(address.epoch, address.row)
        lengths = [length + SPECIALS_PER_PIECE for _, _, length in pieces]
        tokens = np.empty(sum(lengths), dtype=np.int64)
        unit_starts = np.zeros(len(tokens), dtype=bool)
        maskable = np.ones(len(tokens), dtype=bool)
        place = 0
        for (document, start, count), length in zip(pieces, lengths, strict=True):
            inside = slice(place + 1, place + 1 + count)
            tokens[inside], unit_starts[inside] = source.shards.read(document, start, count)
            tokens[place], tokens[place + length - 1] = CLS_ID, SEP_ID
            maskable[place] = maskable[place + length - 1] = False
            place += length
        return tokens, unit_starts, maskable, lengths

    def micro_batch(self, rows: Sequence[int], mask_rate: float) -> PackedBatch:
        """Join rows into one packed micro-batch."""
        masked_rows, piece_lengths = zip(*(self.row(number, mask_rate) for number in rows), strict=True)
        offsets = np.cumsum([0, *(len(row.input_ids) for row in masked_rows)])
        bounds = np.cumsum([0, *(length for lengths in piece_lengths for length in lengths)], dtype=np.int32)
        positions = [row.positions + offset for row, offset in zip(masked_rows, offsets[:-1], strict=True)]
        return PackedBatch(
            input_ids=torch.from_numpy(np.concatenate([row.input_ids for row in masked_rows])),
            cu_seqlens=torch.from_numpy(bounds),
            masked_positions=torch.from_numpy(np.concatenate(positions)),
            targets=torch.from_numpy(np.concatenate([row.targets for row in masked_rows])),
        )


class StepBatches(Dataset):
    """Item s is the list of this rank's micro-batches of step s. `mask_rate` maps a step to its rate."""

    def __init__(self, reader: RowReader, geometry: BatchGeometry, mask_rate: Callable[[int], float]):
        self.reader, self.geometry, self.mask_rate = reader, geometry, mask_rate

    def __getitem__(self, step: int) -> list[PackedBatch]:
        rate = self.mask_rate(step)
        return [self.reader.micro_batch(rows, rate) for rows in self.geometry.micro_batches(step)]


def iterate_steps(
    batches: StepBatches, steps: range, num_workers: int, pin_memory: bool
) -> Iterator[list[PackedBatch]]:
    """Yield the micro-batches of each step in order, prepared ahead by `num_workers` processes (0 = in this one)."""
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=PREFETCH_STEPS if num_workers else None,
            worker_init_fn=_ignore_signals,
            multiprocessing_context="forkserver" if num_workers else None,
        )
    )


def _ignore_signals(worker: int) -> None:
    """A signal meant for the trainer must not kill its loader: the trainer still needs data to reach its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def open_reader(data: DataConfig, mask: MaskConfig, tokenizer: Tokenizer, seed: int) -> RowReader:
    """Open the recipe's shard sets and plan their rows. Raises ShardError when a set belongs to another tokenizer."""
    sources = []
    for index, source in enumerate(data.sources):
        shards = ShardSet(Path(source.path))
        if shards.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise ShardError(
                f"{source.path}: made with tokenizer {shards.tokenizer_fingerprint}, but {tokenizer.directory} is "
                f"{tokenizer.fingerprint}; name the tokenizer it was made with, or preprocess again"
            )
        if shards.num_tokens == 0:
            raise ShardError(f"{source.path}: holds no tokens; preprocess some text")
        sources.append(
            SourceRows(
                shards,
                context=data.context_tokens,
                sentence_ends=tokenizer.sentence_end_tokens(),
                window_rows=data.window_rows,
                group_windows=data.group_windows,
                seed=seed,
                source=index,
            )
        )
    blend = Blend(sources, [source.weight for source in data.sources], seed)
    return RowReader(blend, mask, tokenizer.vocab_size, seed)


def check_epochs(blend: Blend, data: DataConfig, num_rows: int) -> None:
    """Raise ConfigError when a run of `num_rows` rows repeats a source more often than its max_epochs allows."""
    for source, epochs in zip(data.sources, blend.epochs(num_rows), strict=True):
        if epochs > source.max_epochs:
            raise ConfigError(
                f"data.sources: {source.path} would be read {epochs:.2f} times, more than its max_epochs "
                f"{source.max_epochs:g}; lower its weight or train.total_tokens, or raise max_epochs"
            )
