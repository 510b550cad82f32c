"""A branch begins at a checkpoint of another run with its optimizer and place in the data, under its own recipe."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import TrainState, read_state
from cmbert.data.ledger import read_record
from cmbert.export.card import render_card
from cmbert.export.gate import Comparison
from cmbert.export.lineage import read_lineage
from cmbert.report.stages import read_stages
from cmbert.runs.ledger_view import print_step
from cmbert.runs.metrics import read_metrics
from cmbert.tokenizer import load_tokenizer
from tests.integration.launching import REPEATED, settings, train

STEPS, AT = 16, 4  # of the recipe, and where branches begin: its first checkpoint
KEPT = settings("train.keep_every_tokens=2048")  # every checkpoint
LEVEL = ("schedule.warmup_tokens=1024", "mask.start_rate=0.2", "mask.peak_rate=0.2", "mask.end_rate=0.2")
DECAYING = settings("schedule.kind=warmup_stable_decay", "schedule.decay_tokens=1024", *LEVEL)


def figures(run: Path) -> dict[int, dict]:
    """Return what every step of a run came to."""
    return {record["step"]: {key: record[key] for key in REPEATED} for record in read_metrics(run)}


def last_state(run: Path) -> TrainState:
    checkpoint = find_checkpoint(run)
    assert checkpoint is not None
    return read_state(checkpoint)


def branch(parent: Path, recipe: Path, *arguments: str, at: int = AT, run: str = "branch", **how: object) -> str:
    directory = settings(f"run_directory={recipe.parent}/{run}")
    return train(recipe, *directory, "--branch", f"{parent}@{at}", *arguments, **how)


@pytest.fixture
def parent(recipe_file: Path, reference: Callable[..., Path]) -> Path:
    """A finished run with checkpoints of steps 4, 8, 12 and 16."""
    return reference(recipe_file, *KEPT)


def test_the_same_recipe_gives_the_parents_later_steps(recipe_file: Path, tmp_path: Path, parent: Path) -> None:
    """Bit for bit, in one go and in two, the second of which needs no --branch."""
    said = branch(parent, recipe_file, "--max-steps", "6")
    assert f"a branch of {parent}@4, 2,048 tokens: its weights and optimizer; reads on at rows [32]" in said
    train(recipe_file, *settings(f"run_directory={tmp_path}/branch"))
    wanted = {step: record for step, record in figures(parent).items() if step >= AT}
    assert figures(tmp_path / "branch") == wanted
    assert len(wanted) == STEPS - AT
    theirs, ours = last_state(parent), last_state(tmp_path / "branch")
    for step in (AT, STEPS - 1):
        records = [read_record(run, step) for run in (tmp_path / "branch", parent)]
        assert records[0].first_row == records[1].first_row
        assert records[0].segments.documents.tolist() == records[1].segments.documents.tolist()
    assert (ours.step, ours.tokens, ours.rows, ours.source_rows) == (16, 8192, 128, theirs.source_rows)


def test_a_decay_is_as_if_planned_so_from_the_start(
    recipe_file: Path, tmp_path: Path, reference: Callable[..., Path]
) -> None:
    """Warm-up and plateau are the parent's; card and report name it, also when its checkpoint is gone."""
    parent = Path(shutil.copytree(reference(recipe_file, *DECAYING, *KEPT), tmp_path / "plateau"))
    half = settings("train.total_tokens=4096")
    branch(parent, recipe_file, *DECAYING, *half)
    planned = figures(reference(recipe_file, *DECAYING, *half))
    assert figures(tmp_path / "branch") == {step: record for step, record in planned.items() if step >= AT}
    shutil.rmtree(parent / "checkpoints" / "step_000000004")
    lineage = read_lineage(tmp_path / "branch")
    assert [(s.name, s.state.step, s.own_tokens, len(s.records)) for s in lineage.stages] == [
        ("plateau", 4, 2048, 4),
        ("branch", 8, 2048, 4),
    ]
    card = render_card(lineage, "hf", Comparison(1, 0.0, {}), load_tokenizer(lineage.stages[0].recipe.data.tokenizer))
    assert "| branch of | plateau at step 4, with its optimizer and place in the data |" in card
    stages = {stage.name: stage for stage in read_stages(tmp_path)}
    assert (stages["branch"].parent, stages["branch"].branch_of) == ("plateau", f"{parent}@4")
    assert stages["branch"]["tokens"].tolist() == [512 * step for step in range(5, 9)]
    assert read_stages(tmp_path / "branch")[0]["tokens"].tolist() == [512 * step for step in range(5, 9)]


def test_killed_before_its_first_checkpoint_it_begins_at_the_parents_again(
    recipe_file: Path, tmp_path: Path, parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --branch, too: never with fresh weights."""
    branch(parent, recipe_file, fault="kill:6:0", code=-signal.SIGKILL)
    assert find_checkpoint(tmp_path / "branch") is None
    print_step(tmp_path / "branch", AT, show=True)
    assert "row 32: " in capsys.readouterr().out
    said = train(recipe_file, *settings(f"run_directory={tmp_path}/branch"), "--max-steps", "2")
    assert "damaged" not in said
    assert figures(tmp_path / "branch") == {step: figures(parent)[step] for step in (4, 5)}
    said = branch(parent, recipe_file, at=8, code=2)
    assert f"{tmp_path}/branch is a branch of {parent}@4 already" in said
    assert said.count("\n") == 1


def test_another_blend_begins_with_the_branchs_first_row(
    recipe_file: Path, tmp_path: Path, parent: Path, other_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent's source goes on where it stands, a new one begins; also in two lives of the branch."""
    text = recipe_file.read_text(encoding="utf-8")
    sources = f'weight = 1.0\n[[data.sources]]\npath = "{other_shards}"\nweight = 3.0\n[schedule]'
    recipe_file.write_text(text.replace("[schedule]", sources), encoding="utf-8")
    said = branch(parent, recipe_file, "--max-steps", "2")
    assert "reads on at rows [32, 0] of data.sources, with a blend of its own" in said
    train(recipe_file, *settings(f"run_directory={tmp_path}/branch"), "--max-steps", "2")
    state = last_state(tmp_path / "branch")
    assert (state.step, state.rows, state.tokens) == (8, 64, 4096)
    assert (state.first_row, state.first_rows, state.source_rows) == (32, [32, 0], [40, 24])
    for step in range(AT, 8):
        assert set(read_record(tmp_path / "branch", step).segments.sources.tolist()) == {0, 1}
        print_step(tmp_path / "branch", step, show=True)  # from the last checkpoint: the same rows as were read
    assert "row 63: " in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_nothing_begins(recipe_file: Path, tmp_path: Path, parent: Path) -> None:
    copy = Path(shutil.copytree(parent, tmp_path / "copy"))
    damaged = sorted((copy / "checkpoints/step_000000004").glob("*.pt"))[0]
    os.truncate(damaged, 100)
    said = branch(copy, recipe_file, code=2)
    assert f"{damaged}: has 100 bytes of" in said
    assert "truncated; branch from another step, or restore it from a copy" in said
    assert [path.name for path in (tmp_path / "branch").iterdir() if not path.name.startswith("lease")] == []


@pytest.mark.slow
def test_on_another_number_of_ranks(recipe_file: Path, tmp_path: Path, parent: Path) -> None:
    """Within rounding; the parent's directory is only read."""
    before = sorted(parent.rglob("*"))
    said = branch(parent, recipe_file, ranks=2)
    assert "resumed a checkpoint of 1 ranks on 2" in said
    assert sorted(parent.rglob("*")) == before
    ours, theirs = figures(tmp_path / "branch"), figures(parent)
    assert list(ours) == list(range(AT, STEPS))
    for step, record in ours.items():
        assert record["loss"] == pytest.approx(theirs[step]["loss"], abs=1e-5)
        assert record["masked_tokens"] == theirs[step]["masked_tokens"]
