"""Checkpoints: the newest whole one is found, damage is named, and what must stay stays."""

import builtins
import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbert.checkpoint.files import (
    DAMAGED_SUFFIX,
    aside_of,
    check_files,
    damaged_files,
    describe_file,
    find_checkpoint,
    leave_behind,
    list_checkpoints,
    name_newest,
    quarantine,
    require_checkpoint,
    resume_candidates,
)
from cmbert.checkpoint.retention import Retention, prune
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.errors import CheckpointError
from cmbert.files import operations


def make(run: Path, step: int, *, ephemeral: bool = False) -> Path:
    checkpoint = run / "checkpoints" / f"step_{step:09d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.pt").write_bytes(bytes(range(200)))
    state = TrainState(
        step=step, rows=8 * step, tokens=512 * step, world_size=1, zero_stage=1,
        tokenizer_fingerprint="tokenizer", shard_fingerprints=["shards"], ephemeral=ephemeral,
    )  # fmt: skip
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    manifest = {name: describe_file(checkpoint / name) for name in ("weights.pt", "state.json")}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run / "checkpoints" / "latest").write_text(checkpoint.name + "\n", encoding="utf-8")
    return checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make(tmp_path, 4)
    return tmp_path


def test_the_newest_is_found_from_run_or_checkpoint(run: Path) -> None:
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


@pytest.mark.parametrize("latest", ["step_000000009", "step_000000004", "", None])
def test_the_newest_that_is_whole_counts_whatever_latest_says(run: Path, latest: str | None) -> None:
    """A kill may come between the new checkpoint and its name."""
    make(run, 8)
    torn = make(run, 12)
    (torn / "MANIFEST.json").unlink()
    path = run / "checkpoints" / "latest"
    path.unlink() if latest is None else path.write_text(latest + "\n", encoding="utf-8")
    assert find_checkpoint(run) == run / "checkpoints" / "step_000000008"
    assert [path.name for path in resume_candidates(run)] == ["step_000000008", "step_000000004"]
    name_newest(run)
    assert path.read_text(encoding="utf-8") == "step_000000008\n"


def test_what_is_set_aside_is_no_checkpoint_and_nothing_of_it_is_lost(run: Path) -> None:
    root = run / "checkpoints"
    for _ in range(3):
        make(run, 8)
        quarantine(root / "step_000000008", DAMAGED_SUFFIX)
    assert [path.name for path in list_checkpoints(root)] == ["step_000000004"]
    for suffix in ("", ".2", ".3"):
        assert (root / f"step_000000008.damaged{suffix}" / "weights.pt").is_file()


def test_what_a_run_went_back_from_is_left_behind(run: Path) -> None:
    root = run / "checkpoints"
    for step in (6, 8, 12):
        make(run, step)
    assert leave_behind(root, root / "step_000000012") == []
    assert leave_behind(root, root / "step_000000006") == [root / "step_000000008.left", root / "step_000000012.left"]
    assert [path.name for path in list_checkpoints(root)] == ["step_000000004", "step_000000006"]
    assert (root / "step_000000012.left" / "weights.pt").is_file()
    prune(root, Retention(1, 0), 6, lease=1)
    assert (root / "step_000000012.left" / "weights.pt").is_file()
    assert leave_behind(root, run / "elsewhere" / "step_000000020") == [root / "step_000000006.left"]


def test_a_checkpoint_that_nobody_may_write_to_stays(run: Path) -> None:
    """As people protect one: chmod -R a-w; what else is due goes, and nothing fails."""
    root = run / "checkpoints"
    protected = make(run, 6)
    for path in (*protected.iterdir(), protected):
        path.chmod(path.stat().st_mode & ~0o222)
    make(run, 8)
    make(run, 10)
    prune(root, Retention(1, 0), 10, lease=1)
    assert [path.name for path in list_checkpoints(root)] == ["step_000000006", "step_000000010"]
    protected.chmod(0o755)
    prune(root, Retention(1, 0), 10, lease=1)
    assert [path.name for path in list_checkpoints(root)] == ["step_000000010"]


@pytest.mark.parametrize("call", range(1, 9))
def test_a_kill_while_one_is_removed_leaves_nothing_for_good(
    run: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = run / "checkpoints"
    make(run, 6)
    make(run, 8)
    calls: list[str] = []

    def killed(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **more: Any) -> Any:
            calls.append(real.__name__)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        return act

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(os, name, killed(getattr(os, name)))
        with contextlib.suppress(KeyboardInterrupt):
            prune(root, Retention(1, 0), 8, lease=1)
    whole = [path.name for path in list_checkpoints(root)]
    assert whole[-1] == "step_000000008"
    for path in list_checkpoints(root):
        check_files(path)
    prune(root, Retention(1, 0), 8, lease=1)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_000000008"]


def test_what_cannot_be_removed_does_not_keep_the_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = run / "checkpoints", shutil.rmtree
    for step in (6, 8, 10):
        make(run, step)

    def fail(path: Path) -> None:
        if "000006" in path.name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(OSError, match=r"busy \(remove\).*step_000000006"):
            prune(root, Retention(1, 0), 10, lease=1)
    assert sorted(path.name for path in root.iterdir()) == [".step_000000006.removed", "latest", "step_000000010"]
    prune(root, Retention(1, 0), 10, lease=1)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_000000010"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", "weights.pt"])
def test_a_checkpoint_that_cannot_be_read_is_not_damaged(
    run: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming it would throw work away that another try finds whole."""
    checkpoint, tries, real = run / "checkpoints" / "step_000000004", [], builtins.open

    def fail(path: Path, *arguments: Any, **more: Any) -> Any:
        if Path(path).name == name and len(tries) < num_failures:
            tries.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(builtins, "open", fail)
    monkeypatch.setattr(operations, "RETRY_SECONDS", (0, 0))
    num_failures = 2 if number == errno.ESTALE else 0
    assert damaged_files(checkpoint) == []
    assert len(tries) == num_failures
    tries.clear()
    num_failures += 1
    with pytest.raises(OSError, match=re.escape(name)) as raised:
        damaged_files(checkpoint)
    assert raised.value.errno == number


@settings(deadline=None, max_examples=30)
@given(
    ephemeral=st.lists(st.booleans(), min_size=1, max_size=12),
    keep=st.integers(1, 3),
    every=st.sampled_from([0, 1024, 2000]),
)
def test_what_must_stay_stays(
    tmp_path_factory: pytest.TempPathFactory, ephemeral: list[bool], keep: int, every: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    root, permanent = run / "checkpoints", []
    for step, is_ephemeral in enumerate(ephemeral, 1):
        make(run, step, ephemeral=is_ephemeral)
        permanent += [] if is_ephemeral else [step]
        prune(root, Retention(keep, every), step, lease=1)
        expected = {*permanent[-keep:], step}
        for multiple in range(1, 512 * step // every + 1) if every else ():
            first = next((s for s in permanent if 512 * s // every == multiple), None)
            expected |= {first} if first is not None else set()
        assert {read_state(path).step for path in list_checkpoints(root)} == expected


def test_prune_clears_what_older_owners_of_the_run_have_left(run: Path) -> None:
    root = run / "checkpoints"
    make(run, 8)
    own, older, newer = (aside_of(root / "step_000000009", lease) for lease in (3, 2, 4))
    for left in (own, older, newer, root / ".step_000000009.partial", root / ".step_000000004.universal"):
        left.mkdir()
    prune(root, Retention(1, 0), 8, lease=3)
    assert sorted(path.name for path in root.iterdir()) == [newer.name, "latest", "step_000000008"]
