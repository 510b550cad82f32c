"""`cmbert ledger`: which documents a step saw, and its batch made again, decoded, with its masks."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.config.schema import Recipe
from cmbert.data.blend import Blend
from cmbert.data.ledger import StepRecord, read_record
from cmbert.data.sources import open_blend, prove_ids
from cmbert.errors import CheckpointError
from cmbert.runs.branch import read_branch, state_in_branch
from cmbert.runs.directory import PLAN_FOLDER, read_run_recipe
from cmbert.schedule import Schedule
from cmbert.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:  # torch and numba, seconds that only the texts need
    from cmbert.data.batches import PackedBatch

MASKED, REPLACED, KEPT = "⟦{}⟧", "⟦{}→{}⟧", "⟦{}=⟧"


def print_step(run: Path, step: int, *, show: bool) -> None:
    """Print the documents of a step and, if asked, its texts.

    Raises CheckpointError when the run has no record of the step, or when its data gives another batch today.
    """
    record = read_record(run, step)
    recipe = read_run_recipe(run)
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    rows_per_step, folder = recipe.train.rows_per_step, run / PLAN_FOLDER
    blend = open_blend(recipe.data, tokenizer, recipe.train.seed, rows_per_step=rows_per_step, plan_folder=folder)
    print(f"step {step}, rows from {record.first_row:,} of the data: {len(record.segments.documents):,} segments")
    for line in describe(record, blend):
        print(line)
    if show:
        _print_texts(run, recipe, record, blend, tokenizer)


def _print_texts(run: Path, recipe: Recipe, record: StepRecord, blend: Blend, tokenizer: Tokenizer) -> None:
    """Print the texts of a step. Raises CheckpointError when the run's data gives another batch today."""
    from cmbert.data.reader import RowReader
    from cmbert.runs.first_rows import begin_reading, rows_after_stage_before

    for source in blend.sources:
        prove_ids(source.shards, tokenizer, run / PLAN_FOLDER)
    reader = RowReader(blend, recipe.mask, tokenizer.vocabulary, recipe.train.seed)
    if checkpoint := find_checkpoint(run):
        begin_reading(recipe, reader, read_state(checkpoint))
    elif branch := read_branch(run):
        begin_reading(recipe, reader, state_in_branch(recipe, branch, blend))
    else:
        blend.begin_at(rows_after_stage_before(recipe, reader))
    step, schedule = record.step, Schedule.of(recipe)
    rows = range(record.first_row, record.first_row + len(schedule.rows(step)))
    again = reader.segments(reader.find(rows))
    if not all(np.array_equal(a, b) for a, b in zip(again, record.segments, strict=True)):
        raise CheckpointError(f"{run}: its data makes another batch of step {step} today; the shards were changed")
    rate = schedule.mask_rate(step)
    print(
        f"masks at {100 * rate:.2f} %: {MASKED.format('masked')} {REPLACED.format('was', 'is')} {KEPT.format('kept')}"
    )
    for row in rows:
        for text in decode(reader.micro_batch([row], rate), tokenizer):
            print(f"row {row}: {text}")


def describe(record: StepRecord, blend: Blend) -> Iterator[str]:
    """Yield a line for each segment: source, shard, document in the shard, tokens."""
    sets = [source.shards for source in blend.sources]
    for source, document, start, length in zip(*(column.tolist() for column in record.segments), strict=True):
        if source >= len(sets) or not 0 <= document < sets[source].num_documents:
            raise CheckpointError(
                f"step {record.step}: its record names document {document} of data.sources[{source}], which is not "
                "there today; the shards were changed"
            )
        shards = sets[source]
        shard = shards.shard_of(document)
        local = document - int(shards.documents_before[shard])
        yield f"{shards.path} {shards.prefixes[shard].name} document {local} tokens {start}-{start + length - 1}"


def decode(batch: "PackedBatch", tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of each segment of a batch, what is asked for in brackets."""
    ids, bounds = batch.input_ids.tolist(), batch.cu_seqlens.tolist()
    asked = dict(zip(batch.masked_positions.tolist(), batch.targets.tolist(), strict=True))
    for first, last in pairwise(bounds):
        if ids[first] == tokenizer.vocabulary.pad_id:
            continue
        parts: list[str] = []
        plain: list[int] = []
        before: list[int] = []  # the token before `plain`, as the text has it
        for place in range(first + 1, last - 1):
            if place not in asked:
                plain.append(ids[place])
                continue
            parts.append(tokenizer.decode_after(before, plain))
            before, plain = (plain or before)[-1:], []
            was = tokenizer.decode_after(before, [asked[place]])
            text = was.lstrip(" ") if not tokenizer.is_byte_level else was
            parts.append(was.removesuffix(text))  # a space between words is not masked
            if ids[place] == tokenizer.vocabulary.mask_id:
                parts.append(MASKED.format(text))
            elif ids[place] == asked[place]:
                parts.append(KEPT.format(text))
            else:
                now = tokenizer.decode_after(before, [ids[place]])
                parts.append(REPLACED.format(text, now if tokenizer.is_byte_level else now.lstrip(" ")))
            before = [asked[place]]
        yield "".join([*parts, tokenizer.decode_after(before, plain)]).replace("\n", "⏎")
