"""Recipes and DeepSpeed files as people may write them."""

import json
from pathlib import Path

from hypothesis import given

from cmbert.config.deepspeed import load_deepspeed_file
from tests.fuzz.doors import accepts_or_says, damaged_json, inputs_at_this_door

DEEPSPEED = json.loads((Path(__file__).parents[2] / "ds_configs" / "zero1.json").read_text(encoding="utf-8"))


@given(data=damaged_json(DEEPSPEED))
@inputs_at_this_door()
def test_deepspeed_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(data)
    accepts_or_says(lambda: load_deepspeed_file(path), str(path))
