"""What a run directory and its checkpoints hold, damaged: what a resume, `ledger`, `report` and `export` make of it."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cmbert.files.lease
from cmbert.checkpoint.files import check_files, damaged_files, describe_file, list_checkpoints
from cmbert.checkpoint.state import TrainState, read_state, readable_states
from cmbert.config.load import load_recipe, write_resolved
from cmbert.config.schema import GuardConfig
from cmbert.data.ledger import LedgerWriter, Segments, pack_record, read_record
from cmbert.data.packing import read_or_make_plan
from cmbert.data.shards.integrity import Proof, keep_proof, read_proof
from cmbert.data.shards.shard_set import ShardSet
from cmbert.export.lineage import read_lineage
from cmbert.files.lease import Lease, claim, myself
from cmbert.report.page import write_report
from cmbert.report.stages import read_stages
from cmbert.runs.directory import read_run_recipe
from cmbert.runs.metrics import MetricsWriter, append_event, read_events, read_metrics
from cmbert.tokenizer import load_tokenizer
from cmbert.train.guards import Guard
from tests.fuzz.doors import (
    accepts_or_says,
    damaged_bytes,
    damaged_json,
    damaged_values,
    inputs_at_this_door,
    json_bytes,
)

GUARD = {"losses": [3.5, 3.25], "norms": [1.0, 2.0], "num_skipped": 1, "num_in_a_row": 0}
STATE = TrainState(
    step=3, rows=24, tokens=12288, world_size=1, zero_stage=1, tokenizer_fingerprint="f", shard_fingerprints=["s"],
    skipped_rows=((2, 4),), source_rows=[24], first_rows=[0], guard=GUARD, skipped_steps=((0, 1),), job="17",  # type: ignore[arg-type]
)  # fmt: skip
RECORD = {
    "step": 0, "tokens": 1024, "loss": 9.5, "accuracy": 0.1, "learning_rate": 2e-3, "mask_rate": 0.3,
    "masked_tokens": 200.0, "real_tokens": 800, "realised_mask_rate": 0.25, "grad_norm": 1.0, "step_seconds": 0.4,
    "data_wait_seconds": 0.1, "tokens_per_second": 1234.0, "fill_rate": 0.8, "time": 1.79e9, "skipped_rows": 3,
    "source_tokens": [700], "unit_lengths": [50, 30], "source_loss": [9.5], "heldout_loss": 9.0,
    "heldout_accuracy": 0.1, "heldout_masked_tokens": 55.0, "forward_seconds": 0.1, "backward_seconds": 0.2,
    "optimizer_seconds": 0.05, "communication_seconds": 0.01, "mfu": None, "peak_memory_bytes": 10**9,
}  # fmt: skip
EVENT = {"time": 1.79e9, "kind": "spike", "step": 1, "text": "一次"}
SIDE_FILES: dict[str, Any] = {
    "environment.json": {"git_commit": "0123", "python": "3.11.9", "versions": {"torch": "2.13.0", "apex": None}},
    "ds_config.json": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}},
    "eval.json": {
        "heldout_loss": 9.0, "unigram_loss": 9.9, "masked_accuracy": 0.1,
        "by_position": [{"start": 0, "end": 64, "masked_tokens": 9, "loss": 6.9}],
    },
    "summary.json": {"seconds": {"train": 3.5}, "heldout_loss": None},
    "fill_mask.json": [{"text": "[MASK]京", "filled": "北京", "predictions": [{"token": "北", "score": 0.5}]}],
}  # fmt: skip


def lines_of(*records: Any) -> bytes:
    return b"".join(json_bytes(record) + b"\n" for record in records)


def damaged_lines(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy of three JSON lines, one of them with other values, or bytes damaged anywhere, cut ends too."""
    others = [valid | {"step": step} for step in range(3)]
    changed = st.builds(lambda place, value: lines_of(*others[:place], value, *others[place + 1 :]),
                        st.integers(0, 2), damaged_values(valid))  # fmt: skip
    return st.one_of(changed, changed, damaged_bytes(lines_of(*others)))


@pytest.fixture
def run(tmp_path: Path, recipe_file: Path) -> Path:
    """A run of three steps with a checkpoint, whose weights are a few bytes."""
    recipe = load_recipe(recipe_file)
    run = Path(recipe.run_directory)
    checkpoint = run / "checkpoints" / "step_000000003"
    checkpoint.mkdir(parents=True)
    write_resolved(recipe, run / "resolved.toml")
    shards = ShardSet(recipe.data.sources[0].path)
    fingerprint = load_tokenizer(recipe.data.tokenizer).fingerprint
    state = asdict(STATE) | {"tokenizer_fingerprint": fingerprint, "shard_fingerprints": [shards.fingerprint]}
    (checkpoint / "state.json").write_bytes(json_bytes(state))
    (checkpoint / "weights.pt").write_bytes(b"weights")
    files = {path.name: describe_file(path) for path in checkpoint.iterdir()}
    (checkpoint / "MANIFEST.json").write_bytes(json_bytes(files))
    (run / "metrics.jsonl").write_bytes(lines_of(*(RECORD | {"step": step} for step in range(3))))
    (run / "events.jsonl").write_bytes(lines_of(EVENT))
    for name, value in SIDE_FILES.items():
        (run / name).write_bytes(json_bytes(value))
    return run


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "step_000000003"


@given(raw=damaged_json(asdict(STATE)))
@inputs_at_this_door()
def test_states(run: Path, raw: bytes) -> None:
    checkpoint = checkpoint_of(run)
    (checkpoint / "state.json").write_bytes(raw)

    def use() -> None:
        state = read_state(checkpoint)
        Guard(GuardConfig(), torch.device("cpu"), state.guard).memory()

    accepts_or_says(use, "state.json")
    assert set(readable_states(list_checkpoints(checkpoint.parent))) <= {checkpoint}
    assert all(len(line.splitlines()) == 1 and "state.json" in line for line in damaged_files(checkpoint))
    accepts_or_says(lambda: check_files(checkpoint), "state.json")


@given(data=st.data())
@inputs_at_this_door()
def test_manifests(run: Path, data: st.DataObject) -> None:
    checkpoint = checkpoint_of(run)
    valid = {name: describe_file(checkpoint / name) for name in ("state.json", "weights.pt")}
    (checkpoint / "MANIFEST.json").write_bytes(data.draw(damaged_json(valid)))
    assert all(len(line.splitlines()) == 1 and str(checkpoint) in line for line in damaged_files(checkpoint))
    accepts_or_says(lambda: check_files(checkpoint), str(checkpoint))


@given(raw=damaged_lines(RECORD))
@inputs_at_this_door(share=0.4)
def test_metrics(run: Path, raw: bytes) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(raw)
    accepts_or_says(lambda: read_metrics(run), f"{path}: line ")
    accepts_or_says(lambda: read_stages(run), str(path), "no metrics.jsonl with a step")
    accepts_or_says(lambda: read_lineage(run), str(path))

    def rewind() -> None:
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        MetricsWriter(run, 2).close()
        assert all(record["step"] < 2 for record in read_metrics(run))

    accepts_or_says(rewind, str(path))


@given(raw=damaged_lines(EVENT))
@inputs_at_this_door()
def test_events(run: Path, raw: bytes) -> None:
    path = run / "events.jsonl"
    path.write_bytes(raw)
    accepts_or_says(lambda: read_events(run), f"{path}: line ")
    append_event(run, "life", 3, "again")
    found = accepts_or_says(lambda: read_events(run), f"{path}: line ")
    assert found is None or found[-1]["text"] == "again"


@given(data=st.data(), name=st.sampled_from(["metrics.jsonl", "events.jsonl", "resolved.toml", *SIDE_FILES]))
@inputs_at_this_door(share=0.04)
def test_pages(run: Path, data: st.DataObject, name: str) -> None:
    valid = (run / name).read_bytes()
    strategies: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
        "metrics.jsonl": lambda: damaged_lines(RECORD),
        "events.jsonl": lambda: damaged_lines(EVENT),
        "resolved.toml": lambda: damaged_bytes(valid),
    }
    strategy = strategies[name]() if name in strategies else damaged_json(SIDE_FILES[name])
    (run / name).write_bytes(data.draw(strategy))
    try:
        accepts_or_says(lambda: write_report(run, run.parent / "page.html"), str(run))
        accepts_or_says(lambda: read_lineage(run), str(run))
    finally:
        (run / name).write_bytes(valid)


@given(data=st.data(), name=st.sampled_from(sorted(SIDE_FILES)))
@inputs_at_this_door()
def test_side_files(run: Path, data: st.DataObject, name: str) -> None:
    valid = (run / name).read_bytes()
    (run / name).write_bytes(data.draw(damaged_json(SIDE_FILES[name])))
    try:
        accepts_or_says(lambda: read_lineage(run), str(run / name))
        accepts_or_says(lambda: read_stages(run), str(run / name))
    finally:
        (run / name).write_bytes(valid)


@given(data=st.data())
@inputs_at_this_door()
def test_recipes_in_force(run: Path, data: st.DataObject) -> None:
    path = run / "resolved.toml"
    valid = path.read_bytes()
    path.write_bytes(data.draw(damaged_bytes(valid)))
    try:
        accepts_or_says(lambda: read_run_recipe(run), str(run))
        accepts_or_says(lambda: read_stages(run), str(run))
    finally:
        path.write_bytes(valid)


def ledger_bytes() -> bytes:
    segments = Segments(*(np.array(column) for column in ([0, 0, 0], [3, 5, 9], [0, 0, 7], [11, 12, 13])))
    return b"".join(pack_record(step, 8 * step, segments) for step in range(3))


@given(raw=damaged_bytes(ledger_bytes()))
@inputs_at_this_door()
def test_ledgers(run: Path, raw: bytes) -> None:
    path = run / "ledger" / "000000000.bin"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    for step in range(3):
        accepts_or_says(lambda step=step: read_record(run, step), str(path))  # type: ignore[misc]
    LedgerWriter(run, 2).close()
    assert raw.startswith(path.read_bytes())


def npz_bytes(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


PLANS = (
    npz_bytes(starts=np.array([0, 300, 600], np.int64), rows=np.array([9, 8], np.int32)),
    npz_bytes(starts=np.array([0, 300, 200, 600], np.int64), rows=np.array([9, 8, 7], np.int32)),
    npz_bytes(starts=np.array([0, 600], np.int64), rows=np.array([-1], np.int32)),
    npz_bytes(starts=np.array([], np.int64), rows=np.array([], np.int32)),
    npz_bytes(starts=np.array([0, 600], np.int32), rows=np.array([[9]], np.int32)),
    npz_bytes(starts=np.array([None, "x"], object), rows=np.array([9], np.int32)),
)


@given(raw=damaged_bytes(*PLANS))
@inputs_at_this_door()
def test_plans(tmp_path: Path, shards: Path, raw: bytes) -> None:
    path, opened = tmp_path / "plan.npz", ShardSet(shards)
    path.write_bytes(raw)
    plan = accepts_or_says(lambda: read_or_make_plan(path, opened, 64, 8), str(path))
    assert plan is None or (plan.starts[-1] == opened.num_documents and len(plan.rows) == len(plan.starts) - 1)


@given(data=st.data())
@inputs_at_this_door()
def test_proofs(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "proof.npz"
    keep_proof(path, Proof(np.array([1, 2], np.uint32), 0, 99))
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes(), *PLANS[:1])))
    accepts_or_says(lambda: read_proof(path, 5_000_000), str(path))


@given(raw=damaged_json(asdict(myself())))
@inputs_at_this_door()
def test_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(cmbert.files.lease, "RENEW_SECONDS", 0.0001)
    monkeypatch.setattr(cmbert.files.lease, "LOOK_SECONDS", 0.0001)
    folder = tmp_path / "owned"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "lease.000004.json").write_bytes(raw)
    accepts_or_says(Lease(folder, 3).check, str(folder))
    accepts_or_says(lambda: claim(folder, myself()), str(folder))


def test_a_side_file_may_be_missing(run: Path) -> None:
    for name in SIDE_FILES:
        (run / name).unlink()
    read_lineage(run)
    write_report(run, run.parent / "page.html")
    assert json.loads((checkpoint_of(run) / "state.json").read_text(encoding="utf-8"))["step"] == 3
