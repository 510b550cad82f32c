"""Batches of step s are the same at any world size, micro-batch size and worker count; segments are framed."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.batches import BatchGeometry, PackedBatch, SkippedRows, StepData, data_row, merge_ranges
from cmbert.data.loader_processes import iterate_steps
from cmbert.data.reader import StepBatches, open_reader
from cmbert.data.sources import check_epochs
from cmbert.errors import ConfigError, ShardError
from cmbert.tokenizer import Tokenizer, load_tokenizer
from tests.cmbert.devices import META, Dispatched
from tests.own_ids import CLS_ID, MASK_ID, NUM_SPECIAL_TOKENS, PAD_ID, SEP_ID

ROWS_PER_STEP = 24


def rate_of(step: int, start: float) -> float:
    return start + 0.01 * step


@pytest.fixture
def data(tokenizer_directory: Path, shards: Path) -> DataConfig:
    source = SourceConfig(path=str(shards))
    return DataConfig(tokenizer=str(tokenizer_directory), sources=(source,), context_tokens=64, shuffle_block_rows=32)


def rows_of(step: int, size: int) -> range:
    return range(step * size, (step + 1) * size)


def batches(
    data: DataConfig, tokenizer: Tokenizer, rank: int, world: int, rows: int, rows_per_step: int = ROWS_PER_STEP
) -> StepBatches:
    reader = open_reader(data, MaskConfig(), tokenizer, seed=3)
    step_rows = partial(rows_of, size=rows_per_step)
    geometry = BatchGeometry(step_rows=step_rows, micro_batch_rows=rows, rank=rank, world_size=world)
    return StepBatches(reader, geometry, partial(rate_of, start=0.15))


def segments(batch: PackedBatch) -> list[tuple]:
    """Every segment of a batch with its ids, masked places and targets, in an order-free form."""
    found = []
    for first, last in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        inside = (batch.masked_positions >= first) & (batch.masked_positions < last)
        ids = tuple(batch.input_ids[first:last].tolist())
        found.append(
            (ids, tuple((batch.masked_positions[inside] - first).tolist()), tuple(batch.targets[inside].tolist()))
        )
    return found


def test_a_step_is_the_same_at_any_world_size(data: DataConfig, tokenizer: Tokenizer) -> None:
    expected = None
    for world, rows in ((1, 24), (1, 4), (2, 3), (3, 2), (4, 6), (8, 3), (8, 1)):
        found = []
        for rank in range(world):
            micro_batches = batches(data, tokenizer, rank, world, rows)[5].micro_batches
            assert len(micro_batches) == ROWS_PER_STEP // (world * rows)
            found += [segment for batch in micro_batches for segment in segments(batch)]
        expected = expected or sorted(found)
        assert sorted(found) == expected


def attention_cost(batch: PackedBatch) -> int:
    """Sum of the squared lengths of a batch's segments of documents."""
    bounds = batch.cu_seqlens.long()
    return int((bounds.diff()[batch.input_ids[bounds[:-1]] != PAD_ID] ** 2).sum())


def test_ranks_have_equal_attention_work(data: DataConfig, tokenizer: Tokenizer) -> None:
    for world, rows in ((2, 12), (4, 3), (8, 1)):
        datasets = [batches(data, tokenizer, rank, world, rows, rows_per_step=96) for rank in range(world)]
        uneven = []
        for step in range(5):
            work = np.array([sum(map(attention_cost, dataset[step].micro_batches)) for dataset in datasets])
            uneven.append(np.abs(work / work.mean() - 1).mean())
            reader = datasets[0].reader
            assert work.sum() == sum(row.attention_cost for row in reader.find(datasets[0].geometry.rows(step)))
        assert np.mean(uneven) < 0.05


def test_workers_and_restarts_change_nothing(data: DataConfig, tokenizer: Tokenizer) -> None:
    dataset = batches(data, tokenizer, 0, 1, 8)
    alone = list(iterate_steps(dataset, range(6), num_workers=0, pin_memory=False))
    workers = list(iterate_steps(dataset, range(2, 6), num_workers=2, pin_memory=False))
    for one, other in zip(alone[2:], workers, strict=True):
        assert one.facts == other.facts
        for first, second in zip(one.micro_batches, other.micro_batches, strict=True):
            assert first.longest == second.longest == 64
            assert all(torch.equal(a, b) for a, b in zip(first[:-1], second[:-1], strict=True))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 40), st.sampled_from([0, 2]))
def test_any_start_any_world_any_workers(
    data: DataConfig, tokenizer: Tokenizer, world: int, start: int, workers: int
) -> None:
    expected = sorted(
        segment for batch in batches(data, tokenizer, 0, 1, 24)[start].micro_batches for segment in segments(batch)
    )
    found = []
    for rank in range(world):
        dataset = batches(data, tokenizer, rank, world, 1)
        in_processes = workers if rank == 0 else 0
        (step,) = iterate_steps(dataset, range(start, start + 1), num_workers=in_processes, pin_memory=False)
        found += [segment for batch in step.micro_batches for segment in segments(batch)]
    assert sorted(found) == expected


def test_every_tensor_is_pinned_and_moved_once(
    data: DataConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = batches(data, tokenizer, 0, 1, 8)[0]
    held = [tensor for batch in step.micro_batches for tensor in batch[:-1]] + step.row_sources
    assert all(isinstance(tensor, torch.Tensor) for tensor in held)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # without a GPU there is no pinned memory
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    copied = step.pin()
    assert sorted(map(id, pinned)) == sorted(map(id, held))
    assert isinstance(copied, StepData)
    assert all(isinstance(batch, PackedBatch) for batch in copied.micro_batches)
    assert copied.facts == step.facts
    with Dispatched() as seen:
        moved = copied.to(META)
    assert seen.crossings == ["aten._to_copy.default"] * len(held)
    assert {t.device for batch in moved.micro_batches for t in batch[:-1]} | {t.device for t in moved.row_sources} == {
        META
    }
    assert [batch.longest for batch in moved.micro_batches] == [64] * 3


def test_segments_are_framed_and_specials_never_masked(data: DataConfig, tokenizer: Tokenizer) -> None:
    padded = 0
    for step in range(6):
        for batch in batches(data, tokenizer, 0, 1, 8)[step].micro_batches:
            assert batch.input_ids.dtype == torch.int64
            assert batch.cu_seqlens.dtype == torch.int32
            assert len(batch.input_ids) == 8 * 64  # in every step
            bounds = batch.cu_seqlens.long()
            assert bounds[-1] == len(batch.input_ids)
            assert set(range(0, 8 * 64, 64)) < set(bounds.tolist())  # no segment crosses the end of a row
            assert batch.positions.tolist() == [place for n in bounds.diff().tolist() for place in range(n)]
            assert bounds.diff().max() <= batch.longest == 64
            first, last = batch.input_ids[bounds[:-1]], batch.input_ids[bounds[1:] - 1]
            padding = first == PAD_ID
            assert (first[~padding] == CLS_ID).all()
            assert (last[~padding] == SEP_ID).all()
            for start, end in zip(bounds[:-1][padding], bounds[1:][padding], strict=True):
                assert (batch.input_ids[start:end] == PAD_ID).all()
                assert end % 64 == 0
                padded += int(end - start)
            specials = set(torch.where(batch.input_ids < MASK_ID)[0].tolist())
            assert not specials & set(batch.masked_positions.tolist())
            assert (batch.targets > MASK_ID).all()
    assert 0 < padded < 0.15 * 6 * 24 * 64  # such short rows are less full than long ones


def test_an_epoch_reads_every_token_once(data: DataConfig, tokenizer: Tokenizer) -> None:
    reader = open_reader(data, MaskConfig(), tokenizer, seed=3)
    source = reader.blend.sources[0]
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for row in range(source.num_rows):
        ids = reader.assemble([row]).ids
        counts += np.bincount(ids[ids >= NUM_SPECIAL_TOKENS], minlength=tokenizer.vocab_size)
    assert (counts == source.shards.token_counts(tokenizer.vocab_size)).all()


def test_another_tokenizer_is_refused(
    data: DataConfig, tokenizer_directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    text = (tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ShardError, match="made with tokenizer"):
        open_reader(data, MaskConfig(), load_tokenizer(tmp_path), seed=0)


def test_too_many_epochs_are_refused(data: DataConfig, tokenizer: Tokenizer, shards: Path) -> None:
    limited = DataConfig(
        tokenizer=data.tokenizer, sources=(SourceConfig(path=str(shards), max_epochs=2.0),), context_tokens=64
    )
    blend = open_reader(limited, MaskConfig(), tokenizer, seed=0).blend
    rows = blend.sources[0].num_rows
    check_epochs(blend, limited, 2 * rows)
    with pytest.raises(ConfigError, match=r"would be read 3\.00 times"):
        check_epochs(blend, limited, 3 * rows)


@given(
    asked=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=6),
    sizes=st.lists(st.integers(1, 6), min_size=40, max_size=40),
)
def test_every_row_is_left_out_or_seen_once(asked: list[tuple[int, int]], sizes: list[int]) -> None:
    """Steps of any sizes; ranges asked for in any order, as later resumes may."""
    starts = [sum(sizes[:step]) for step in range(41)]
    skipped_rows: SkippedRows = ()
    for step, count in asked:
        first, last = (data_row(starts[s], skipped_rows) for s in (step, step + count))
        skipped_rows = merge_ranges([*skipped_rows, (first, last)])
    geometry = BatchGeometry(lambda step: range(starts[step], starts[step + 1]), 1, 0, 1, skipped_rows)
    seen = [row for step in range(40) for row in geometry.rows(step)]
    gone = {row for first, last in skipped_rows for row in range(first, last)}
    assert sorted({*seen, *(row for row in gone if row < seen[-1])}) == list(range(seen[-1] + 1))
    assert not gone & set(seen)
    assert len(seen) == len(set(seen)) == starts[-1]
