"""The order of the runs in a folder: as train.init_from says, whatever their names."""

import re
import shutil
from pathlib import Path

import pytest

from cmbert.report.page import write_report
from cmbert.report.stages import read_stages
from tests.cmbert.report.made_run import EVALUATION, make_run, write


def page_of(run: Path) -> str:
    output = run.parent / "pages" / "report.html"
    write_report(run, output)
    return output.read_text(encoding="utf-8")


def test_stages_follow_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    make_run(folder / "stage1")
    make_run(folder / "stage2", num_steps=10, context=1024, init_from=folder / "stage1")
    (folder / "stage3").mkdir()
    (folder / "stage3" / "metrics.jsonl").write_text("", encoding="utf-8")  # just started: nothing to show yet
    write(folder / "stage1" / "eval.json", {**EVALUATION, "heldout_loss": 7.0})
    write(folder / "eval.json", EVALUATION)
    first, second = read_stages(folder)
    assert second["tokens"][0] - first["tokens"][-1] == 8 * 1024
    assert first.evaluation["heldout_loss"] == 7.0
    assert second.evaluation["heldout_loss"] == 6.6123
    page = page_of(folder)
    for text in ("<h1>quickstart</h1>", "context 1,024 tokens · 10 steps", "held-out 7.00, after stage 1", "2 stages"):
        assert text in page
    assert "6.61, after stage 2" in page
    assert "6.612<small>" in page, "the headline is of the last stage"
    assert "stroke: var(--stage-2)" in page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stages whose names are in the wrong order, a side branch of the first, and a run of its own."""
    folder = tmp_path / "runs"
    first = make_run(folder / "b_first")
    make_run(folder / "a_second", num_steps=20, init_from=first)
    make_run(folder / "a_branch", num_steps=10, init_from=first / "checkpoints" / "step_000000010")
    make_run(folder / "alone", num_steps=5)
    return folder


def test_stages_stand_as_they_were_started_from_each_other(folder: Path) -> None:
    stages = read_stages(folder)
    assert [stage.name for stage in stages] == ["b_first", "a_second", "a_branch", "alone"]
    assert [stage.start_tokens for stage in stages] == [0, 40 * 1024, 10 * 1024, 0]
    assert [stage.is_side for stage in stages] == [False, False, True, True]


def test_side_branches_are_drawn_and_not_summed(folder: Path) -> None:
    page = page_of(folder)
    assert "2 stages, 2 other runs · 60 steps" in page
    assert re.search(r"Tokens seen.*?61\.4k", page, re.DOTALL)
    assert re.search(r"Wall time.*?30\.0<small>s", page, re.DOTALL), "60 steps of half a second"
    assert "a_branch</b> from b_first at 10.2k tokens" in page
    assert "stroke: var(--stage-3)" in page


def test_a_folder_that_was_moved_is_read_by_its_names(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "moved")
    assert [stage.name for stage in read_stages(tmp_path / "moved")][:2] == ["b_first", "a_second"]


def test_runs_that_name_each_other_are_shown_apart(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    make_run(folder / "one", init_from=folder / "two")
    make_run(folder / "two", init_from=folder / "one")
    assert {stage.start_tokens for stage in read_stages(folder)} == {0}
