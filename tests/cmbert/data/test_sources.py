"""What a stage reads of its sources, and what it does not."""

from pathlib import Path

import pytest

from cmbert.cluster.distributed import read_launch
from cmbert.config.load import load_recipe
from cmbert.config.schema import SourceConfig
from cmbert.data.sources import describe_unread, open_blend
from cmbert.tokenizer import Tokenizer
from cmbert.train.heldout import open_heldout


def test_what_a_stage_leaves_unread_is_said(recipe_file: Path, tokenizer: Tokenizer) -> None:
    data = load_recipe(recipe_file).data
    blend = open_blend(data, tokenizer, 0)
    rows = blend.sources[0].num_rows
    (line,) = describe_unread(blend, data, rows - 10)
    assert line.startswith(f"{data.sources[0].path}: this stage reads {rows - 10:,} of its {rows:,} rows; 10 (")
    assert describe_unread(blend, data, rows) == describe_unread(blend, data, 3 * rows) == []


def test_each_source_is_told_of(recipe_file: Path, tokenizer: Tokenizer, other_shards: Path) -> None:
    recipe = load_recipe(recipe_file)
    sources = (
        SourceConfig(path=recipe.data.sources[0].path, weight=1.0),
        SourceConfig(path=str(other_shards), weight=9.0),
    )
    data = recipe.data.__class__(**(vars(recipe.data) | {"sources": sources}))
    blend = open_blend(data, tokenizer, 0)
    first, second = (source.num_rows for source in blend.sources)
    lines = describe_unread(blend, data, 40)
    assert f"reads 4 of its {first:,} rows; {first - 4:,} (" in lines[0]
    assert f"reads 36 of its {second:,} rows; {second - 36:,} (" in lines[1]


def test_held_out_rows_that_are_not_scored_are_said(
    recipe_file: Path, tokenizer: Tokenizer, other_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cmbert")
    recipe = load_recipe(recipe_file, [f"evaluation.shards={other_shards}", "evaluation.max_rows=5"])
    (heldout,) = open_heldout(recipe, tokenizer, read_launch({}))
    rows = heldout.reader.blend.sources[0].num_rows
    assert [r.message for r in caplog.records] == [
        f"{other_shards}: evaluation.max_rows = 5 of its {rows} rows are scored"
    ]
