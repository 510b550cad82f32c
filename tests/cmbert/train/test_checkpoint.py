"""Checkpoints: found through `latest`, refused when a file changed, and named in the error."""

import json
from pathlib import Path

import pytest

from cmbert.errors import CheckpointError
from cmbert.files import hash_file
from cmbert.train.checkpoint import check_files, find_checkpoint, require_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoints" / "step_000000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.pt").write_bytes(bytes(range(200)))
    entry = {"bytes": 200, "blake2b": hash_file(checkpoint / "weights.pt")}
    (checkpoint / "MANIFEST.json").write_text(json.dumps({"weights.pt": entry}), encoding="utf-8")
    (tmp_path / "checkpoints" / "latest").write_text("step_000000004\n", encoding="utf-8")
    return tmp_path


def test_latest_is_found_from_run_or_checkpoint(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step_000000004"
    assert find_checkpoint(run) == checkpoint
    assert find_checkpoint(checkpoint) == checkpoint
    check_files(checkpoint)
    assert find_checkpoint(run / "checkpoints") is None
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        require_checkpoint(run / "nowhere")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named(run: Path, damage: str) -> None:
    weights = run / "checkpoints" / "step_000000004" / "weights.pt"
    raw = bytearray(weights.read_bytes())
    if damage == "flip":
        raw[100] ^= 1
        weights.write_bytes(raw)
    elif damage == "truncate":
        weights.write_bytes(raw[:-1])
    else:
        weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        check_files(weights.parent)


def test_a_latest_that_names_nothing_is_an_error(run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step_000000009\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="names step_000000009, which is missing"):
        find_checkpoint(run)
