"""The held-out score in training asks something, or the run does not start."""

from pathlib import Path

import pytest

from cmbert.cluster.distributed import read_launch
from cmbert.config.load import load_recipe
from cmbert.errors import InputError
from cmbert.tokenizer import Tokenizer
from cmbert.train.heldout import open_heldout
from tests.conftest import make_shards


def test_text_too_short_to_ask_anything_is_refused(recipe_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    alone = read_launch({})
    short = make_shards(tmp_path / "short", tokenizer, lengths=[1])
    with pytest.raises(InputError, match=r"evaluation\.shards: .*short: its first 1 rows are too short to mask any"):
        open_heldout(load_recipe(recipe_file, [f"evaluation.shards={short}"]), tokenizer, alone)
    some = make_shards(tmp_path / "some", tokenizer, lengths=[1, 40])
    assert len(open_heldout(load_recipe(recipe_file, [f"evaluation.shards={some}"]), tokenizer, alone)) == 1
