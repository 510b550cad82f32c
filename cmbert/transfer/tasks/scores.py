"""What a model answers, how it is scored and how a submission spells it.

Entities are counted as seqeval counts them (github.com/chakki-works/seqeval, micro average, default mode), here by the
characters they cover.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from cmbert.transfer.tasks.fields import Entity, Example
from cmbert.transfer.tasks.spans import exact_match, span_f1
from cmbert.transfer.tasks.task import Task


class Found(NamedTuple):
    """What the model answers to one example."""

    choice: int = -1
    """Class or choice."""
    text: str = ""
    """The span."""
    score: float = 0.0
    """Of a span's start and end together: of parts of one long text the best answers."""
    labels: tuple[int, ...] = ()
    """Several labels to a text: the indices of those it gets, in order."""
    value: float = math.nan
    """Regression: the number, in the unit of the files."""
    entities: tuple[Entity, ...] = ()


def answer_text(task: Task, found: Found) -> str:
    """Return an answer as a trial's record keeps it: the label, the choice's number from 0, the span, or JSON."""
    if task.kind == "classification":
        return task.labels[found.choice]
    if task.kind == "multilabel":
        return json.dumps([task.labels[label] for label in found.labels], ensure_ascii=False)
    if task.kind == "regression":
        return f"{found.value:.6g}"
    if task.kind == "tokens":
        return json.dumps(found.entities, ensure_ascii=False)
    return str(found.choice) if task.kind == "choice" else found.text


def submission(task: Task, example: Example, answer: str) -> dict[str, Any]:
    """Return the fields of a line of predictions: what `answer_text` kept, under "label" as CLUE's submissions do.

    Entities are spelled as CLUENER2020's: {type: {surface: [[start, last character]]}}.
    """
    if task.kind == "classification":
        return {"label": answer}
    if task.kind != "tokens":
        return {"label": float(answer) if task.kind == "regression" else json.loads(answer)}
    text = example.parts[0][0]
    label: dict[str, dict[str, list[list[int]]]] = {}
    for start, end, name in json.loads(answer):
        label.setdefault(name, {}).setdefault(text[start:end], []).append([start, end - 1])
    return {"text": text, "label": label}


def said_scores(scores: dict[str, float]) -> str:
    """Return scores, percent, for the log."""
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items())


def score(task: Task, examples: Sequence[Example], found: Sequence[Found]) -> dict[str, float]:
    """Return the task's scores in percent, under task.score_names."""
    return dict(zip(task.score_names, _scores(task, examples, found), strict=True))


def _scores(task: Task, examples: Sequence[Example], found: Sequence[Found]) -> Sequence[float]:
    if task.kind == "span":
        pairs = [(answer.text, example.answers) for example, answer in zip(examples, found, strict=True)]
        return [percent(sum(measure(*pair) for pair in pairs), len(pairs)) for measure in (exact_match, span_f1)]
    if task.kind == "tokens":
        return entity_scores([example.entities or () for example in examples], [answer.entities for answer in found])
    if task.kind == "regression":
        return correlations([example.value for example in examples], [answer.value for answer in found])
    if task.kind == "multilabel":
        truths = [example.labels or () for example in examples]
        return f1_scores(truths, [answer.labels for answer in found], len(task.labels))
    labels, choices = [example.label for example in examples], [answer.choice for answer in found]
    if task.metric == "macro_f1":
        return f1_scores([(label,) for label in labels], [(choice,) for choice in choices], len(task.labels))[1:]
    return [percent(sum(label == choice for label, choice in zip(labels, choices, strict=True)), len(labels))]


def percent(share: float, whole: float) -> float:
    """Return `share` of `whole` in percent; 0 of nothing."""
    return 100 * share / whole if whole else 0.0


def f1_scores(
    truths: Sequence[Collection[int | None]], answers: Sequence[Collection[int]], num_labels: int
) -> tuple[float, float]:
    """Return micro and macro F1, percent, of each example's labels; in macro one that nobody has or says counts 0."""
    hits: Counter[int | None] = Counter()
    said: Counter[int | None] = Counter()
    for truth, answer in zip(truths, answers, strict=True):
        hits.update(set(truth) & set(answer))
        said.update([*truth, *answer])
    each = [percent(2 * hits[label], said[label]) for label in range(num_labels)]
    return percent(2 * hits.total(), said.total()), sum(each) / num_labels


def entity_scores(
    truths: Sequence[Collection[Entity]], answers: Sequence[Collection[Entity]]
) -> tuple[float, float, float]:
    """Return F1, precision and recall, percent, of the entities of each text; 0 where there is nothing to divide by."""
    hits = sum(len(set(truth) & set(answer)) for truth, answer in zip(truths, answers, strict=True))
    said, told = (sum(len(set(entities)) for entities in side) for side in (answers, truths))
    return percent(2 * hits, said + told), percent(hits, said), percent(hits, told)


def correlations(truths: Sequence[float | None], answers: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's and Pearson's, percent; 0 where they are not defined, as if all answers are the same."""
    from scipy import stats

    if len(set(truths)) < 2 or len(set(answers)) < 2 or not all(map(math.isfinite, answers)):
        return 0.0, 0.0
    spearman, pearson = stats.spearmanr(truths, answers), stats.pearsonr(truths, answers)
    return 100 * float(spearman.statistic), 100 * float(pearson.statistic)
