"""Checkpoints: found through `latest`, damage is named, and what must stay stays."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.errors import CheckpointError
from cmbert.train.checkpoint import (
    Retention,
    TrainState,
    check_files,
    damaged_files,
    describe_file,
    find_checkpoint,
    list_checkpoints,
    prune,
    read_state,
    require_checkpoint,
    resume_candidates,
    set_aside,
)


def make(run: Path, step: int, *, rolling: bool = False) -> Path:
    checkpoint = run / "checkpoints" / f"step_{step:09d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.pt").write_bytes(bytes(range(200)))
    state = TrainState(step, 8 * step, 512 * step, 1, 1, "tokenizer", ["shards"], rolling=rolling)
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    manifest = {name: describe_file(checkpoint / name) for name in ("weights.pt", "state.json")}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run / "checkpoints" / "latest").write_text(checkpoint.name + "\n", encoding="utf-8")
    return checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make(tmp_path, 4)
    return tmp_path


def test_latest_is_found_from_run_or_checkpoint(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step_000000004"
    assert find_checkpoint(run) == checkpoint
    assert find_checkpoint(checkpoint) == checkpoint
    check_files(checkpoint)
    assert read_state(checkpoint).step == 4
    assert find_checkpoint(run / "checkpoints") is None
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        require_checkpoint(run / "nowhere")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["weights.pt", "state.json"])
def test_damage_is_named(run: Path, name: str, damage: str) -> None:
    path = run / "checkpoints" / "step_000000004" / name
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[20] ^= 1
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        check_files(path.parent)
    shares = [damaged_files(path.parent, share, 2) for share in range(2)]
    assert sum(map(bool, shares)) >= 1  # found by whoever has the file


def test_a_latest_that_names_nothing_is_an_error_but_a_resume_finds_the_newest(run: Path) -> None:
    make(run, 8)
    (run / "checkpoints" / "latest").write_text("step_000000009\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="names step_000000009, which is missing"):
        find_checkpoint(run)
    assert [path.name for path in resume_candidates(run)] == ["step_000000008", "step_000000004"]


def test_a_resume_begins_where_latest_says_and_goes_back_from_there(run: Path) -> None:
    for step in (8, 12):
        make(run, step)
    (run / "checkpoints" / "latest").write_text("step_000000008\n", encoding="utf-8")
    assert [path.name for path in resume_candidates(run)] == ["step_000000008", "step_000000004"]
    set_aside(run / "checkpoints" / "step_000000008")
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_000000004", "step_000000012"]
    assert (run / "checkpoints" / "step_000000008.damaged" / "weights.pt").is_file()


@settings(deadline=None, max_examples=30)
@given(
    rolling=st.lists(st.booleans(), min_size=1, max_size=12),
    keep=st.integers(1, 3),
    every=st.sampled_from([0, 1024, 2000]),
)
def test_what_must_stay_stays(
    tmp_path_factory: pytest.TempPathFactory, rolling: list[bool], keep: int, every: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    root, lasting = run / "checkpoints", []
    for step, is_rolling in enumerate(rolling, 1):
        make(run, step, rolling=is_rolling)
        lasting += [] if is_rolling else [step]
        prune(root, Retention(keep, every), step)
        expected = {*lasting[-keep:], step}
        for multiple in range(1, 512 * step // every + 1) if every else ():
            first = next((s for s in lasting if 512 * s // every == multiple), None)
            expected |= {first} if first is not None else set()
        assert {read_state(path).step for path in list_checkpoints(root)} == expected


def test_prune_leaves_the_later_life_of_a_run_and_clears_leftovers(run: Path) -> None:
    root = run / "checkpoints"
    make(run, 100)
    make(run, 8)
    for left in (".step_000000009.partial", ".step_000000004.universal"):
        (root / left).mkdir()
    prune(root, Retention(1, 0), 8)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_000000008", "step_000000100"]
