"""The loss of each source: every masked token counts for its own, whatever the micro-batches and the ranks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.batches import BatchGeometry, StepData
from cmbert.data.reader import RowReader, StepBatches, open_reader
from cmbert.tokenizer import Tokenizer
from cmbert.train.source_loss import SourceLoss, mean_source_loss
from tests.cmbert.devices import META, Dispatched

CPU = torch.device("cpu")


@pytest.fixture
def two_sources(recipe_file: Path, other_shards: Path, tokenizer: Tokenizer) -> tuple[Recipe, RowReader]:
    text = recipe_file.read_text(encoding="utf-8")
    text = text.replace("[schedule]", f'[[data.sources]]\npath = "{other_shards}"\n[schedule]')
    recipe_file.write_text(text, encoding="utf-8")
    recipe = load_recipe(recipe_file)
    return recipe, open_reader(recipe.data, recipe.mask, tokenizer, recipe.train.seed)


def read_step(reader: RowReader, *, rank: int, world_size: int, micro_batch_rows: int) -> StepData:
    geometry = BatchGeometry(lambda step: range(8 * step, 8 * step + 8), micro_batch_rows, rank, world_size)
    return StepBatches(reader, geometry, lambda step: 0.3)[3]


def losses_of(targets: torch.Tensor) -> torch.Tensor:
    return 1 + targets.float() / 100  # a made-up loss that depends on the token alone


def totals_of(recipe: Recipe, data: StepData, context: int) -> list[float]:
    found = SourceLoss(len(recipe.data.sources), context, CPU)
    for batch, row_sources in zip(data.micro_batches, data.row_sources, strict=True):
        found.add(batch, losses_of(batch.targets), row_sources)
    return [float(total) for total in found.totals()]


def test_every_masked_token_counts_for_its_source(two_sources: tuple[Recipe, RowReader]) -> None:
    recipe, reader = two_sources
    context = recipe.data.context_tokens
    sums, counts = np.zeros(2), np.zeros(2)
    for row in range(24, 32):  # step 3, a row at a time
        batch = reader.micro_batch([row], 0.3)
        source = reader.blend.address(row).source
        sums[source] += losses_of(batch.targets).double().sum().item()
        counts[source] += len(batch.targets)
    assert (counts > 0).all(), "both sources are in the step"
    expected = [*sums, *counts]
    alone = read_step(reader, rank=0, world_size=1, micro_batch_rows=8)
    assert totals_of(recipe, alone, context) == pytest.approx(expected)
    ranks = [read_step(reader, rank=rank, world_size=2, micro_batch_rows=2) for rank in range(2)]
    summed = np.sum([totals_of(recipe, data, context) for data in ranks], axis=0)
    assert summed == pytest.approx(expected)
    assert mean_source_loss(summed.tolist()) == {"source_loss": pytest.approx(list(sums / counts))}


def test_a_source_without_masked_tokens_has_none() -> None:
    assert mean_source_loss([6.0, 0.0, 3.0, 0.0]) == {"source_loss": [2.0, None]}


def test_one_source_has_no_list(recipe_file: Path, tokenizer: Tokenizer) -> None:
    recipe = load_recipe(recipe_file)
    reader = open_reader(recipe.data, recipe.mask, tokenizer, recipe.train.seed)
    totals = totals_of(recipe, read_step(reader, rank=0, world_size=1, micro_batch_rows=8), 64)
    assert mean_source_loss(totals) == {}


def test_adding_up_never_meets_the_host(two_sources: tuple[Recipe, RowReader]) -> None:
    recipe, reader = two_sources
    data = read_step(reader, rank=0, world_size=1, micro_batch_rows=4).to(META)
    with Dispatched() as seen:
        found = SourceLoss(len(recipe.data.sources), recipe.data.context_tokens, META)
        for batch, row_sources in zip(data.micro_batches, data.row_sources, strict=True):
            found.add(batch, losses_of(batch.targets), row_sources)
    assert (seen.crossings, seen.devices) == ([], {META})


def test_segments_are_counted_by_length(two_sources: tuple[Recipe, RowReader]) -> None:
    _, reader = two_sources
    data = read_step(reader, rank=0, world_size=1, micro_batch_rows=8)
    (batch,) = data.micro_batches
    bounds = batch.cu_seqlens.tolist()
    segments = [end - begin for begin, end in pairwise(bounds) if batch.input_ids[begin] != 0]
    assert len(segments) == data.facts.num_segments == sum(data.facts.segment_lengths.values())
    assert sorted(segments) == sorted(n for n, count in data.facts.segment_lengths.items() for _ in range(count))
    assert data.facts == read_step(reader, rank=0, world_size=2, micro_batch_rows=2).facts._replace(
        unit_lengths=data.facts.unit_lengths
    )
