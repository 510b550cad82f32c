"""state.json: what a run's progress is in it, the same table whichever version wrote it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cmbert.checkpoint.state import Progress, read_state
from cmbert.errors import CheckpointError

TABLE = {
    "step": 3, "rows": 26, "tokens": 12288, "world_size": 2, "zero_stage": 1, "tokenizer_fingerprint": "f",
    "shard_fingerprints": ["s"], "skipped_rows": [[2, 4]], "source_rows": [26], "first_rows": [0], "ephemeral": True,
    "guard": {"losses": [3.5], "norms": [1.0], "num_skipped": 1, "num_in_a_row": 0}, "skipped_steps": [[0, 1], [4, 6]],
    "first_row": 13, "job": "17", "optimizer_kind": "muon",
}  # fmt: skip


def test_a_state_is_written_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(TABLE), encoding="utf-8")
    state = read_state(tmp_path)
    assert state.progress == Progress(step=3, skipped_rows=((2, 4),), skipped_steps=((0, 1), (4, 6)))
    assert json.loads(json.dumps(asdict(state))) == TABLE


def test_names_of_earlier_checkpoints_are_read(tmp_path: Path) -> None:
    earlier = {"skipped_rows": "left_out", "skipped_steps": "asked", "ephemeral": "rolling"}
    assert earlier.keys() < TABLE.keys()
    written = {earlier.get(key, key): value for key, value in TABLE.items()}
    (tmp_path / "state.json").write_text(json.dumps(written), encoding="utf-8")
    assert json.loads(json.dumps(asdict(read_state(tmp_path)))) == TABLE


def test_the_oldest_states_have_left_nothing_out(tmp_path: Path) -> None:
    keys = ("step", "rows", "tokens", "world_size", "zero_stage", "tokenizer_fingerprint", "shard_fingerprints")
    (tmp_path / "state.json").write_text(json.dumps({key: TABLE[key] for key in keys}), encoding="utf-8")
    assert read_state(tmp_path).progress == Progress(step=3)


@pytest.mark.parametrize("key", ["skipped_rows", "skipped_steps"])
@pytest.mark.parametrize("value", [[[4, 2]], [[1, 2, 3]], [3], {"2": 4}, [["2", "4"]]], ids=str)
def test_what_are_no_pairs_is_damage(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({**TABLE, key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"state\.json: {key}.*damaged"):
        read_state(tmp_path)


def test_a_blend_that_begins_after_the_rows_read_is_damage(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({**TABLE, "first_row": 27}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state\.json: first_row: not among the rows; damaged"):
        read_state(tmp_path)
