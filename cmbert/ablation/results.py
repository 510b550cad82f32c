"""What a sweep found: scores of every arm over its seeds, and differences from the first arm, seed by seed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from cmbert.ablation.lists import AblationList, Arm, ArmRun
from cmbert.ablation.tasks import task_scores
from cmbert.errors import CheckpointError
from cmbert.evaluate.interval import interval
from cmbert.files.json_types import misfit, read_as
from cmbert.runs.metrics import read_metrics

NEEDED = ("tokens", "step_seconds", "data_wait_seconds", "tokens_per_second")  # of each step of a training
MEASURES = ("heldout_loss", "bits_per_character", "masked_accuracy")


class ArmScore(TypedDict):
    """One of the scores that `cmbert eval` writes, beside its MEASURES."""

    context_tokens: int
    unit: str
    characters_per_token: NotRequired[float | None]


class Question(NamedTuple):
    """How the final score asks: rows of `context` tokens, whole words or single tokens hidden."""

    context: int
    unit: str

    def __str__(self) -> str:
        return f"{self.unit}s hidden, rows of {self.context:,}"


@dataclass(frozen=True)
class ArmResult:
    """One arm: its trainings that are scored, at the best of its learning rates, oldest seed first."""

    arm: Arm
    runs: tuple[ArmRun, ...]
    tried: dict[float, float]
    """Final loss of the first seed by learning rate; empty where the arm has no rates to choose from."""
    scores: dict[Question, dict[str, dict[str, Any]]]
    """By question and measure: mean, half_width, values; one value a seed."""
    differences: dict[Question, dict[str, dict[str, Any]]]
    """Likewise this arm minus the first arm, over the seeds that both have."""
    tasks: dict[str, dict[str, Any]]
    """By task the dev score, percent: mean, half_width, values, seeds; difference from the first arm or None."""
    curve: tuple[np.ndarray, np.ndarray]
    """Held-out loss in mid-training: tokens seen, shape (points,), and nats, shape (seeds, points)."""
    tokens_per_second: float
    """Median step of all seeds; tells speeds apart only where the trainings had the machine alike."""
    minutes: float
    """In training steps, mean of the seeds."""
    characters_per_token: float | None

    @property
    def rate(self) -> float | None:
        """The learning rate that the arm chose."""
        return self.runs[0].rate

    @property
    def total_tokens(self) -> int:
        """The arm's budget."""
        return sum(stage.train.total_tokens for stage in self.runs[0].stages)

    @property
    def edge(self) -> str | None:
        """Where the best rate is the least or the highest that the list names: what to try, "smaller" or "larger"."""
        rates = self.arm.learning_rates
        if len(rates) < 2 or self.rate not in (min(rates), max(rates)):
            return None
        return "larger" if self.rate == max(rates) else "smaller"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        scores = [
            {"context_tokens": question.context, "unit": question.unit, **self.scores[question]}
            | {"difference": self.differences.get(question)}
            for question in self.scores
        ]
        tokens, losses = self.curve
        return {
            "arm": self.arm.name,
            "what": self.arm.what,
            "seeds": [run.seed for run in self.runs],
            "tokens": self.total_tokens,
            "learning_rate": self.rate,
            "learning_rates_tried": [
                {"learning_rate": rate, "heldout_loss": loss} for rate, loss in self.tried.items()
            ],
            "edge": self.edge,
            "scores": scores,
            "tasks": self.tasks,
            "curve": {"tokens": tokens.tolist(), "heldout_loss": losses.tolist()},
            "tokens_per_second": self.tokens_per_second,
            "minutes": self.minutes,
            "characters_per_token": self.characters_per_token,
        }


def read_results(ablation: AblationList, runs: Sequence[ArmRun]) -> list[ArmResult]:
    """Return the arms that have a score, in the list's order. Raises CheckpointError for a malformed score."""
    found: list[ArmResult] = []
    best = best_rates(ablation, runs)
    for arm in ablation.arms:
        chosen = [run for run in runs if run.arm == arm.name and run.rate == best.get(arm.name)]
        scored = {run: answer for run in chosen if (answer := _read_answers(run, ablation))}
        if scored:
            first = found[0] if found and found[0].arm is ablation.arms[0] else None
            tasks = {run: task_scores(run, ablation) for run in scored}
            found.append(_summarise(arm, scored, tasks, _rates_tried(arm, ablation, runs), first))
    return found


def best_rates(ablation: AblationList, runs: Sequence[ArmRun]) -> dict[str, float]:
    """Return the learning rate of each arm that has scored some: of the lowest loss in the list's first question."""
    tried = {arm.name: _rates_tried(arm, ablation, runs) for arm in ablation.arms}
    return {name: min(losses, key=losses.__getitem__) for name, losses in tried.items() if losses}


def _rates_tried(arm: Arm, ablation: AblationList, runs: Sequence[ArmRun]) -> dict[float, float]:
    """Return the final loss of the first seed by learning rate, lowest rate first, where it is scored."""
    question = Question(ablation.contexts[0], ablation.units[0])
    losses = {
        run.rate: float(answers[question]["heldout_loss"])
        for run in runs
        if run.arm == arm.name and run.seed == 0 and run.rate is not None and (answers := _read_answers(run, ablation))
    }
    return dict(sorted(losses.items()))


def unscored(runs: Sequence[ArmRun], ablation: AblationList) -> list[ArmRun]:
    """Return the runs that have no score yet, or not of all that the list asks. Raises as `read_results`."""
    return [run for run in runs if not _read_answers(run, ablation)]


def verdict(difference: dict[str, Any] | None, *, lower_is_better: bool) -> str:
    """Say in words what a difference from the first arm shows: whether its interval leaves out zero."""
    if difference is None:
        return "compared with"
    if difference["half_width"] is None:
        return "one seed: no interval"
    if abs(difference["mean"]) <= difference["half_width"]:
        return "no difference seen"
    return "better" if (difference["mean"] < 0) is lower_is_better else "worse"


def _read_answers(run: ArmRun, ablation: AblationList) -> dict[Question, dict[str, Any]]:
    """Return a run's scores in what the list asks; empty where it has not been asked all of that."""
    if not run.score_file.is_file():
        return {}
    found = _read_scores(run.score_file)
    asked = [Question(context, unit) for context in ablation.contexts for unit in ablation.units]
    return {question: found[question] for question in asked} if found.keys() >= set(asked) else {}


def _read_scores(path: Path) -> dict[Question, dict[str, Any]]:
    how: dict[str, Any] = {"error": CheckpointError, "remedy": "not what `cmbert eval` writes; remove it and run again"}
    written = read_as(path, dict[str, Any], **how)
    scores = written.get("scores", [written])
    fault = misfit(scores, list[dict[str, Any]], "scores")
    for number, score in enumerate(scores if fault is None else []):
        figures = {measure: score.get(measure) for measure in MEASURES}
        fault = fault or misfit(score, ArmScore, f"scores[{number}]") or misfit(figures, dict[str, float])
    if fault:
        raise CheckpointError(f"{path}: {fault}; {how['remedy']}")
    return {Question(score["context_tokens"], score["unit"]): score for score in scores}


def _summarise(
    arm: Arm,
    scored: dict[ArmRun, dict[Question, dict[str, Any]]],
    tasks: dict[ArmRun, dict[str, float]],
    tried: dict[float, float],
    first: ArmResult | None,
) -> ArmResult:
    runs = tuple(scored)
    questions = list(scored[runs[0]])
    scores = {
        question: {measure: interval([scored[run][question][measure] for run in runs]) for measure in MEASURES}
        for question in questions
    }
    differences = {question: _subtract(runs, scores[question], first, question) for question in questions if first}
    stages = [[read_metrics(Path(stage.run_directory), needed=NEEDED) for stage in run.stages] for run in runs]
    records = [list(itertools.chain(*of_run)) for of_run in stages]
    seconds = [sum(r["step_seconds"] + r["data_wait_seconds"] for r in steps) for steps in records]
    return ArmResult(
        arm=arm,
        runs=runs,
        tried=tried,
        scores=scores,
        differences=differences if first else {},
        tasks=_task_results(tasks, first),
        curve=_curve(stages),
        tokens_per_second=float(np.median([r["tokens_per_second"] for steps in records for r in steps])),
        minutes=float(np.mean(seconds)) / 60,
        characters_per_token=next(iter(scored[runs[0]].values())).get("characters_per_token"),
    )


def _subtract(
    runs: Sequence[ArmRun], scores: dict[str, dict[str, Any]], first: ArmResult, question: Question
) -> dict[str, dict[str, Any]]:
    """Return this arm minus the first: a seed's rows come in the same order in both, so seeds are paired."""
    seeds, theirs = [run.seed for run in runs], [run.seed for run in first.runs]
    both = [seed for seed in seeds if seed in theirs]
    if not both or question not in first.scores:
        return {}
    return {
        measure: interval(
            [
                scores[measure]["values"][seeds.index(seed)]
                - first.scores[question][measure]["values"][theirs.index(seed)]
                for seed in both
            ]
        )
        for measure in MEASURES
    }


def _task_results(tasks: dict[ArmRun, dict[str, float]], first: ArmResult | None) -> dict[str, dict[str, Any]]:
    """Return the dev scores by task over the seeds that have one, and minus the first arm's, paired likewise."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for scores in tasks.values() for name in scores):
        ours = {run.seed: scores[name] for run, scores in tasks.items() if name in scores}
        found[name] = {**interval(list(ours.values())), "seeds": list(ours), "difference": None}
        if first and name in first.tasks:
            theirs = dict(zip(first.tasks[name]["seeds"], first.tasks[name]["values"], strict=True))
            both = [seed for seed in ours if seed in theirs]
            found[name]["difference"] = interval([ours[seed] - theirs[seed] for seed in both]) if both else None
    return found


def _curve(runs: Sequence[Sequence[list[dict[str, Any]]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out losses of mid-training where all seeds have one; a second stage goes on from the first.

    runs: the records of each seed's stages.
    """
    points: list[dict[int, float]] = []
    for stages in runs:
        before, found = 0, dict[int, float]()
        for records in stages:
            found |= {
                before + int(r["tokens"]): r["heldout_loss"] for r in records if r.get("heldout_loss") is not None
            }
            before += int(records[-1]["tokens"]) if records else 0
        points.append(found)
    tokens = sorted(set.intersection(*map(set, points)))
    return np.array(tokens), np.array([[found[token] for token in tokens] for found in points])
