"""What a sweep found: paired differences worked by hand, words for them, curves, the page."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmbert.ablation.comparison import write_comparison
from cmbert.ablation.lists import AblationList, ArmRun, load_list, plan_runs
from cmbert.ablation.results import Question, read_results, unscored, verdict
from cmbert.ablation.tables import differences_of, primary_measure
from cmbert.errors import CheckpointError

LOSSES = {("a", 0): 5.0, ("a", 1): 6.0, ("a", 2): 7.0, ("b", 0): 4.5, ("b", 1): 5.7, ("b", 2): 6.4}


@pytest.fixture
def swept(recipe_file: Path, tmp_path: Path) -> tuple[AblationList, list[ArmRun]]:
    """A sweep of two arms and three seeds as it lies on disk, with made-up losses."""
    recipe = recipe_file.read_text(encoding="utf-8") + '\n[evaluation]\nshards = "heldout"\n'
    (tmp_path / "base.toml").write_text(recipe, encoding="utf-8")
    path = tmp_path / "list.toml"
    path.write_text(
        f'base = "{tmp_path}/base.toml"\nquestion = "掩码：整词还是单字？"\n[[arms]]\nname = "a"\nwhat = "整词"\n'
        '[[arms]]\nname = "b"\nwhat = "<b>单字</b>"\nset.mask = { unit = "token", peak_rate = 0.2 }\n',
        encoding="utf-8",
    )
    ablation = load_list(path)
    runs = plan_runs(ablation, path, tmp_path / "out", 3)
    for run in runs:
        write_run(run, LOSSES[run.arm, run.seed])
    return ablation, runs


def write_run(run: ArmRun, loss: float) -> None:
    stage = Path(run.stages[0].run_directory)
    stage.mkdir(parents=True)
    records = [
        {"step": step, "tokens": 512 * (step + 1), "step_seconds": 2.0, "data_wait_seconds": 1.0}
        | {"tokens_per_second": 100.0 + run.seed, "heldout_loss": loss + 3 - step if step % 2 else None}
        for step in range(4)
    ]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    score = {"context_tokens": 64, "unit": "word", "heldout_loss": loss, "bits_per_character": loss / 2}
    score |= {"masked_accuracy": 0.5, "characters_per_token": 1.5}
    run.score_file.write_text(json.dumps(score), encoding="utf-8")


def test_differences_are_paired_by_seed(swept: tuple[AblationList, list[ArmRun]]) -> None:
    first, second = read_results(*swept)
    question = Question(64, "word")
    assert first.scores[question]["heldout_loss"]["mean"] == 6.0
    # Differences -.5, -.3, -.6: mean -7/15, deviation .1528, t of 2 degrees of freedom at 97.5 % 4.3027
    difference = second.differences[question]["heldout_loss"]
    assert difference["mean"] == pytest.approx(-7 / 15)
    assert difference["half_width"] == pytest.approx(4.302653 * math.sqrt(0.07 / 3) / math.sqrt(3), rel=1e-5)
    assert verdict(difference, lower_is_better=True) == "better"
    assert first.differences == {}
    # Unpaired, the same figures would show nothing: each arm alone spreads by more than 2.
    assert second.scores[question]["heldout_loss"]["half_width"] > 2


def test_verdicts() -> None:
    assert verdict({"mean": 0.2, "half_width": 0.1}, lower_is_better=True) == "worse"
    assert verdict({"mean": 0.2, "half_width": 0.1}, lower_is_better=False) == "better"
    assert verdict({"mean": 0.1, "half_width": 0.1}, lower_is_better=True) == "no difference seen"
    assert verdict({"mean": 0.1, "half_width": None}, lower_is_better=True) == "one seed: no interval"


def test_curves_hold_what_all_seeds_have(swept: tuple[AblationList, list[ArmRun]]) -> None:
    ablation, runs = swept
    tokens, losses = read_results(ablation, runs)[0].curve
    assert tokens.tolist() == [1024, 2048]
    assert np.allclose(losses, [[7, 5], [8, 6], [9, 7]])
    assert read_results(ablation, runs)[0].minutes == pytest.approx(4 * 3 / 60)


def test_a_sweep_cut_short_compares_what_there_is(swept: tuple[AblationList, list[ArmRun]]) -> None:
    ablation, runs = swept
    for run in runs:
        if run.seed == 2 or (run.arm, run.seed) == ("a", 1):
            run.score_file.unlink()
    first, second = read_results(ablation, runs)
    assert [run.seed for run in first.runs] == [0]
    difference = second.differences[Question(64, "word")]["heldout_loss"]
    assert difference["values"] == [-0.5]
    assert verdict(difference, lower_is_better=True) == "one seed: no interval"


def test_the_page(swept: tuple[AblationList, list[ArmRun]], tmp_path: Path) -> None:
    ablation, runs = swept
    page = write_comparison(tmp_path / "out", ablation, runs).read_text(encoding="utf-8")
    assert "掩码：整词还是单字？" in page
    assert "&lt;b&gt;单字&lt;/b&gt;" in page
    assert page.count("<svg") == 5  # curves wide and narrow, closer, differences, mask rates; the learning rate is one
    assert "6 of 6 trainings of 8,192 tokens each" in page
    assert "mask.peak_rate = 0.2; mask.unit = token" in page
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "-0.4667 ± 0.3795" in text
    again = write_comparison(tmp_path / "out", ablation, runs).read_text(encoding="utf-8")
    assert again == page
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["measure"] == "heldout_loss"


def test_what_was_tried_before_is_counted(swept: tuple[AblationList, list[ArmRun]], tmp_path: Path) -> None:
    ablation, runs = swept
    for called, noted in ((runs, False), ([run for run in runs if run.seed < 2], True)):
        write_comparison(tmp_path / "out", ablation, called)
        text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
        assert ("Tried here before and not compared above: 2 trainings (a/seed2, b/seed2)." in text) is noted


def test_bits_per_character_where_tokenizers_differ(swept: tuple[AblationList, list[ArmRun]]) -> None:
    _, runs = swept
    assert primary_measure(runs) == "heldout_loss"
    stage = runs[1].stages[0]
    other = replace(runs[1], stages=(replace(stage, data=replace(stage.data, tokenizer="other")),))
    assert primary_measure([runs[0], other]) == "bits_per_character"
    assert "data.tokenizer = other" in differences_of(other.stages, runs[0].stages)


def test_nothing_scored_and_a_score_that_is_none(swept: tuple[AblationList, list[ArmRun]], tmp_path: Path) -> None:
    ablation, runs = swept
    runs[0].score_file.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"score\.json: .*not what `cmbert eval` writes"):
        read_results(ablation, runs)
    for run in runs:
        run.score_file.unlink()
    with pytest.raises(CheckpointError, match="no training is scored yet"):
        write_comparison(tmp_path / "out", ablation, runs)


def test_a_score_of_other_questions_is_none(swept: tuple[AblationList, list[ArmRun]], tmp_path: Path) -> None:
    """The list's contexts or units changed: what was asked before says nothing, the trainings need not be repeated."""
    ablation, runs = swept
    assert not unscored(runs, ablation)
    for changed in (replace(ablation, contexts=(64, 128)), replace(ablation, units=("word", "token"))):
        assert unscored(runs, changed) == runs
        with pytest.raises(CheckpointError, match="no training is scored yet"):
            write_comparison(tmp_path / "out", changed, runs)
    longer = replace(ablation, contexts=(64, 128))
    old = json.loads(runs[1].score_file.read_text(encoding="utf-8"))
    for run in (runs[1], runs[2]):  # one of each arm is scored again, of two seeds
        both = [old, {**old, "context_tokens": 128, "heldout_loss": 1.0}, {**old, "context_tokens": 256}]
        run.score_file.write_text(json.dumps({"scores": both}), encoding="utf-8")
    assert unscored(runs, longer) == [runs[0], *runs[3:]]
    first, second = read_results(longer, runs)
    assert [list(arm.scores) for arm in (first, second)] == [[Question(64, "word"), Question(128, "word")]] * 2
    assert ([run.seed for run in first.runs], [run.seed for run in second.runs]) == ([1], [0])
    write_comparison(tmp_path / "out", longer, runs)
    assert unscored([runs[1]], ablation) == []  # it answers more than is asked
    assert [list(arm.scores) for arm in read_results(ablation, [runs[1]])] == [[Question(64, "word")]]


NO_MEASURE = '{"scores": [{"context_tokens": 64, "unit": "word"}]}'


@pytest.mark.parametrize("written", ["[]", "5", '{"scores": [5]}', '{"scores": 5}', "{", "\udcff", NO_MEASURE])
def test_a_file_that_is_no_score_is_named(swept: tuple[AblationList, list[ArmRun]], written: str) -> None:
    ablation, runs = swept
    runs[0].score_file.write_bytes(written.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"score\.json: .*not what `cmbert eval` writes"):
        read_results(ablation, runs)
