"""Arms that choose a learning rate, arms with fewer tokens, and fine-tuned scores: planned, continued, reported."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cmbert.ablation import sweep
from cmbert.ablation.comparison import write_comparison
from cmbert.ablation.lists import AblationList, ArmRun, load_list, plan_runs
from cmbert.ablation.results import best_rates, read_results
from cmbert.errors import CheckpointError, ConfigError

ARMS = """
seeds = 2
tasks = ["chnsenticorp", "ocnli_10k"]
[[arms]]
name = "a"
what = "plain"
learning_rates = [1e-3, 2e-3, 4e-3]
[[arms]]
name = "b"
what = "other"
learning_rates = [2e-3, 4e-3]
set.mask = { unit = "token" }
[[arms]]
name = "half"
what = "no rates, half the tokens"
tokens = "50 %"
set.schedule = { warmup_tokens = "25 %" }
"""
LOSSES = {("a", 1e-3): 6.0, ("a", 2e-3): 5.0, ("a", 4e-3): 5.5, ("b", 2e-3): 4.9, ("b", 4e-3): 4.8, ("half", None): 6}


def write_list(folder: Path, recipe_file: Path, arms: str = ARMS) -> Path:
    recipe = recipe_file.read_text(encoding="utf-8") + '\n[evaluation]\nshards = "heldout"\n'
    (folder / "base.toml").write_text(recipe, encoding="utf-8")
    path = folder / "list.toml"
    path.write_text(f'base = "{folder}/base.toml"\nquestion = "Which?"\n{arms}', encoding="utf-8")
    return path


def write_run(run: ArmRun) -> None:
    """Write what a training that is done leaves: its steps and its score."""
    stage = Path(run.stages[0].run_directory)
    stage.mkdir(parents=True, exist_ok=True)
    step = {"step": 0, "tokens": 512, "step_seconds": 2.0, "data_wait_seconds": 1.0, "tokens_per_second": 100.0}
    (stage / "metrics.jsonl").write_text(json.dumps(step) + "\n", encoding="utf-8")
    loss = LOSSES[run.arm, run.rate] + run.seed / 8
    score = {"context_tokens": 64, "unit": "word", "heldout_loss": loss, "bits_per_character": 1.0}
    run.score_file.write_text(json.dumps(score | {"masked_accuracy": 0.5}), encoding="utf-8")


def write_task_score(run: ArmRun, task: str, percent: float) -> Path:
    """Write what `cmbert finetune` leaves of a task."""
    path = run.folder / "tasks" / task / run.arm / "result.json"
    path.parent.mkdir(parents=True)
    score = {"accuracy": {"mean": percent, "half_width": None, "values": [percent]}}
    result = {"task": task, "model": run.arm, "scores": ["accuracy"], "splits": {"dev": score}, "train_examples": 9}
    result |= {"setting": {}, "grid": [], "max_length": 64, "texts_cut": 0, "hardware": "", "seconds": 1.0}
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


@pytest.fixture
def planned(recipe_file: Path, tmp_path: Path) -> tuple[AblationList, list[ArmRun]]:
    path = write_list(tmp_path, recipe_file)
    ablation = load_list(path)
    return ablation, plan_runs(ablation, path, tmp_path / "out", 2, {"a": 2e-3, "b": 4e-3})


def test_each_rate_has_the_first_seed_and_the_best_the_others(
    planned: tuple[AblationList, list[ArmRun]], tmp_path: Path
) -> None:
    _, runs = planned
    out = tmp_path / "out"
    first = ["a/lr-0.001", "b/lr-0.002", "half", "a/lr-0.002", "b/lr-0.004", "a/lr-0.004"]  # every arm, then again
    folders = [str(run.folder.relative_to(out)) for run in runs]
    assert folders == [f"{name}/seed0" for name in first] + ["a/lr-0.002/seed1", "b/lr-0.004/seed1", "half/seed1"]
    rates = {run.rate: run.stages[0].schedule for run in runs if run.arm == "a"}
    assert {rate: (found.lr_max, found.lr_min) for rate, found in rates.items()} == {
        1e-3: (1e-3, 1e-4),
        2e-3: (2e-3, 2e-4),
        4e-3: (4e-3, 4e-4),
    }
    undecided = plan_runs(load_list(tmp_path / "list.toml"), tmp_path / "list.toml", out, 2)
    assert [run.arm for run in undecided if run.seed == 1] == ["half"]


def test_an_arm_may_have_a_share_of_the_tokens(planned: tuple[AblationList, list[ArmRun]]) -> None:
    budgets = {run.arm: run.stages[0].train.total_tokens for run in planned[1]}
    assert budgets == {"a": 8192, "b": 8192, "half": 4096}
    assert next(run.stages[0].schedule.warmup_tokens for run in planned[1] if run.arm == "half") == 1024


def test_the_best_rate_is_compared_and_an_edge_is_told(
    planned: tuple[AblationList, list[ArmRun]], tmp_path: Path
) -> None:
    ablation, runs = planned
    for run in runs:
        write_run(run)
    assert best_rates(ablation, runs) == {"a": 2e-3, "b": 4e-3}
    a, b, half = read_results(ablation, runs)
    assert [(arm.rate, arm.edge, len(arm.runs)) for arm in (a, b, half)] == [
        (2e-3, None, 2),
        (4e-3, "larger", 2),
        (None, None, 2),
    ]
    assert next(iter(b.differences.values()))["heldout_loss"]["values"] == pytest.approx([-0.2, -0.2])
    page = write_comparison(tmp_path / "out", ablation, runs).read_text(encoding="utf-8")
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    for found in (page, text):
        assert "best, at the edge: try larger" in found
        assert "9 of 9 trainings of 4,096 to 8,192 tokens" in found
        assert "before and not compared" not in found
        assert "Fine-tuned" not in found
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][:3] == ["arm", "tokens", "learning rate"]
    assert ["half", "4,096", "–"] in [row[:3] for row in rows]
    assert ["a", "0.001", "6.0000", ""] in rows
    assert ["a", "0.002", "5.0000", "best"] in rows
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["arms"]
    assert [(arm["learning_rate"], arm["tokens"], arm["edge"]) for arm in written][2] == (None, 4096, None)
    runs[0].score_file.unlink()  # a rate that failed
    assert best_rates(ablation, runs) == {"a": 2e-3, "b": 4e-3}
    write_comparison(tmp_path / "out", ablation, runs)
    assert "no score" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


class Trainer:
    """Stands in for the processes of a sweep: writes what they would, and remembers what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.failing = ""

    def __call__(self, runs: Sequence[ArmRun], ablation: AblationList, data: Any, num_jobs: Any) -> list[ArmRun]:
        self.asked.append([])
        for run in runs:
            for command in sweep.commands_of(run, ablation, data):
                words = [word for word in command[3:] if word in ("train", "eval", "finetune", *ablation.tasks)]
                self.asked[-1].append(f"{run.arm} {run.rate or ''} {run.seed}: {' '.join(words)}")
                if words[0] == "eval" and str(run.folder) not in self.failing.split():
                    write_run(run)
                if words[0] == "finetune":
                    write_task_score(run, words[-1], 70.0 + run.seed)
        return [run for run in runs if str(run.folder) in self.failing.split()]


def task_data(folder: Path) -> Path:
    for file in ("chnsenticorp/train.tsv", "ocnli/train.json"):  # the sample's data, named as the whole task's
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
    return folder


def test_a_sweep_chooses_first_and_fine_tunes_the_best_alone(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path, trainer, out = write_list(tmp_path, recipe_file), Trainer(), tmp_path / "out"
    monkeypatch.setattr(sweep, "_train_all", trainer)
    how: dict[str, Any] = {"text": "", "base": None, "num_seeds": None, "num_jobs": 1}
    sweep.ablate(path, out, **how)
    chosen = ["a 0.002 1", "b 0.004 1", "half  1"]
    search = ["a 0.001 0", "b 0.002 0", "half  0", "a 0.002 0", "b 0.004 0", "a 0.004 0"]
    assert trainer.asked == [[f"{run}: {do}" for run in runs for do in ("train", "eval")] for runs in (search, chosen)]
    trainer.asked.clear()
    sweep.ablate(path, out, **how)
    assert trainer.asked == [[], []]
    trainer.asked.clear()
    sweep.ablate(path, out, **how, tasks_data=task_data(tmp_path / "data"))
    best = ["half  0", "a 0.002 0", "b 0.004 0", *chosen]  # nothing is trained again
    tasks = ("chnsenticorp", "ocnli_10k")
    assert trainer.asked == [[], [f"{run}: finetune {task}" for run in best for task in tasks]]
    assert "Fine-tuned" not in capsys.readouterr().out.split("# Which?")[1]
    trainer.asked.clear()
    sweep.ablate(path, out, **how)
    assert trainer.asked == [[], []]
    assert "70.50 ± 6.35 (2)" in capsys.readouterr().out


def test_a_rate_that_fails_leaves_the_others_to_choose_from(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trainer, out = write_list(tmp_path, recipe_file), Trainer(), tmp_path / "out"
    monkeypatch.setattr(sweep, "_train_all", trainer)
    trainer.failing = f"{out}/a/lr-0.002/seed0 {out}/b/lr-0.002/seed0 {out}/b/lr-0.004/seed0"
    with pytest.raises(sweep.InputError, match="3 of 8 trainings failed"):
        sweep.ablate(path, out, text="", base=None, num_seeds=None, num_jobs=1)
    assert [run for run in trainer.asked[1] if run.endswith("train")] == ["a 0.004 1: train", "half  1: train"]


def test_scores_of_tasks_are_paired_by_seed(planned: tuple[AblationList, list[ArmRun]], tmp_path: Path) -> None:
    ablation, runs = planned
    for run in runs:
        write_run(run)
    percent = {("a", 0): 80.0, ("a", 1): 82.0, ("b", 0): 81.0, ("b", 1): 83.5, ("half", 1): 82.5}
    for run in runs:
        if (run.arm, run.seed) in percent and run.rate == {"a": 2e-3, "b": 4e-3}.get(run.arm):
            broken = write_task_score(run, "chnsenticorp", percent[run.arm, run.seed])
    a, b, half = read_results(ablation, runs)
    assert a.tasks["chnsenticorp"]["difference"] is None
    assert b.tasks["chnsenticorp"]["difference"]["values"] == [1.0, 1.5]
    assert half.tasks["chnsenticorp"]["difference"]["values"] == [0.5]
    write_comparison(tmp_path / "out", ablation, runs)
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "+1.25 ± 3.18" in text
    assert "ocnli_10k" not in text
    result = json.loads(broken.read_text(encoding="utf-8"))
    broken.write_text(json.dumps(result | {"splits": {"dev": {"accuracy": {"mean": "much"}}}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"half/seed1/tasks/chnsenticorp: splits.dev.mean: found 'much'"):
        read_results(ablation, runs)


def test_data_of_a_task_that_are_not_there_are_named(recipe_file: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path, recipe_file)
    (tmp_path / "data").mkdir()
    how: dict[str, Any] = {"text": "", "base": None, "num_seeds": 1, "num_jobs": 1, "tasks_data": tmp_path / "data"}
    with pytest.raises(ConfigError, match=r"data: no data of chnsenticorp: none of .*/chnsenticorp/train\.tsv"):
        sweep.ablate(path, tmp_path / "out", **how)
    path = write_list(tmp_path, recipe_file, ARMS.replace("tasks =", "# "))
    with pytest.raises(ConfigError, match="the list names no tasks"):
        sweep.ablate(path, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1e-3, 2e-3", "0.0, 2e-3", "a: learning_rates: 0.0 must be positive"),
        ("1e-3, 2e-3", "2e-3, 2e-3", "a: learning_rates: two are the same"),
        (
            "set.mask = { unit",
            "set.schedule = { lr_max = 1e-3 }\nset.mask = { unit",
            "b: set.schedule.lr_max: learning_",
        ),
        ('"50 %"', '"half"', "half: tokens: 'half' is no share"),
        ('"50 %"', '"0 %"', "half: tokens: '0 %' is no share"),
        ('"ocnli_10k"', '"ocnly"', "tasks ocnly: unknown task; did you mean 'ocnli'"),
        ('"ocnli_10k"', '"chnsenticorp"', "tasks: two are named 'chnsenticorp'"),
    ],
)
def test_mistakes(recipe_file: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_list(tmp_path, recipe_file, ARMS.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_list(path)
    assert "\n" not in str(caught.value)
