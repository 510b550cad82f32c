"""A stage reads on where the one before it ended; a run never changes which rows it reads."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.ledger import read_record
from cmbert.data.reader import RowReader, open_reader
from cmbert.errors import CheckpointError
from cmbert.runs.directory import check_fits
from cmbert.runs.first_rows import rows_after_stage_before
from cmbert.runs.ledger_view import print_step
from cmbert.tokenizer import Tokenizer
from tests.conftest import leave_run
from tests.integration.launching import settings, train

TOTAL = 32  # rows of stage 1, of the about 700 of `shards`


@pytest.fixture
def two_sources(recipe_file: Path, other_shards: Path) -> Path:
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(
        text.replace("[schedule]", f'[[data.sources]]\npath = "{other_shards}"\n[schedule]'), "utf-8"
    )
    return recipe_file


def reader_of(recipe: Recipe, tokenizer: Tokenizer) -> RowReader:
    return open_reader(recipe.data, recipe.mask, tokenizer, recipe.train.seed)


def leave_stage(recipe: Recipe, reader: RowReader, **changes: object) -> Path:
    """Make a run that ended after TOTAL rows; return its checkpoint."""
    run = leave_run(recipe, 4)
    checkpoint = find_checkpoint(run)
    assert checkpoint is not None
    fingerprints = [source.shards.fingerprint for source in reader.blend.sources]
    state = {"shard_fingerprints": fingerprints, "source_rows": reader.blend.consumed(TOTAL), "rows": TOTAL, **changes}
    kept = dataclasses.asdict(dataclasses.replace(read_state(checkpoint), **state))
    (checkpoint / "state.json").write_text(json.dumps(kept), encoding="utf-8")
    return checkpoint


def next_stage(recipe_file: Path, *overrides: str) -> Recipe:
    folder = recipe_file.parent
    return load_recipe(recipe_file, [f"train.init_from={folder}/run", f"run_directory={folder}/stage2", *overrides])


def test_the_same_rows_are_read_on_and_others_from_the_beginning(two_sources: Path, tokenizer: Tokenizer) -> None:
    first = load_recipe(two_sources)
    reader = reader_of(first, tokenizer)
    leave_stage(first, reader)
    ended = reader.blend.consumed(TOTAL)
    assert min(ended) > 0
    stage = next_stage(two_sources)
    assert rows_after_stage_before(stage, reader_of(stage, tokenizer)) == ended
    assert rows_after_stage_before(first, reader) == [0, 0]  # no stage before it
    for other in ("data.context_tokens=128", "data.shuffle_block_rows=16", "data.shuffle_blocks=3", "train.seed=1"):
        stage = next_stage(two_sources, other)
        assert rows_after_stage_before(stage, reader_of(stage, tokenizer)) == [0, 0]
    first_source, _ = stage.data.sources
    stage = dataclasses.replace(
        next_stage(two_sources), data=dataclasses.replace(first.data, sources=(first_source, first_source))
    )
    assert rows_after_stage_before(stage, reader_of(stage, tokenizer)) == [ended[0], 0]


def test_a_run_of_an_older_version_with_one_source_is_read_on(recipe_file: Path, tokenizer: Tokenizer) -> None:
    first = load_recipe(recipe_file)
    leave_stage(first, reader_of(first, tokenizer), source_rows=[])
    stage = next_stage(recipe_file)
    assert rows_after_stage_before(stage, reader_of(stage, tokenizer)) == [TOTAL]


def test_a_checkpoint_of_another_blend_or_version_is_refused(two_sources: Path, tokenizer: Tokenizer) -> None:
    recipe = load_recipe(two_sources)
    reader = reader_of(recipe, tokenizer)
    checkpoint = leave_stage(recipe, reader, tokenizer_fingerprint=tokenizer.fingerprint)
    state = read_state(checkpoint)
    check_fits(checkpoint, state, tokenizer, reader)
    with pytest.raises(CheckpointError, match="of a version that mixed several"):
        check_fits(checkpoint, dataclasses.replace(state, source_rows=[]), tokenizer, reader)
    large, small = state.source_rows
    moved = dataclasses.replace(state, source_rows=[large - 3, small + 3])
    stands = rf"stand at rows \[{large - 3}, {small + 3}\], which this recipe.s blend cannot have made of 32 rows"
    with pytest.raises(CheckpointError, match=stands):
        check_fits(checkpoint, moved, tokenizer, reader)


def test_a_checkpoint_of_an_older_version_with_one_source_fits(recipe_file: Path, tokenizer: Tokenizer) -> None:
    recipe = load_recipe(recipe_file)
    reader = reader_of(recipe, tokenizer)
    checkpoint = leave_stage(recipe, reader, tokenizer_fingerprint=tokenizer.fingerprint, source_rows=[])
    check_fits(checkpoint, read_state(checkpoint), tokenizer, reader)


def test_stage_two_of_the_same_rows_sees_what_a_longer_stage_one_would(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the rows and masks of stage 1 again; also when it is broken off and goes on."""
    train(recipe_file, *settings(f"run_directory={tmp_path}/long", "train.total_tokens=4096"))
    train(recipe_file, *settings("train.total_tokens=2048"))
    second = settings(f"run_directory={tmp_path}/stage2", f"train.init_from={tmp_path}/run", "train.total_tokens=2048")
    said = train(recipe_file, *second, "--max-steps", "2")
    assert "reading on where" in said
    checkpoints = tmp_path / "stage2/checkpoints"
    checkpoints.rename(tmp_path / "not yet")
    print_step(tmp_path / "stage2", 1, show=True)  # before its first checkpoint, which says where it began
    assert "row 8: " in capsys.readouterr().out
    (tmp_path / "not yet").rename(checkpoints)
    train(recipe_file, *second)
    for step in range(4):
        for mine, theirs in zip(
            read_record(tmp_path / "stage2", step).segments,
            read_record(tmp_path / "long", step + 4).segments,
            strict=True,
        ):
            assert np.array_equal(mine, theirs)
    checkpoint = find_checkpoint(tmp_path / "stage2")
    assert checkpoint is not None
    state: TrainState = read_state(checkpoint)
    assert (state.rows, state.source_rows, state.first_rows) == (TOTAL, [2 * TOTAL], [TOTAL])
    print_step(tmp_path / "stage2", 1, show=True)
    assert "row 8: " in capsys.readouterr().out
