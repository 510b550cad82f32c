"""The mean of several checkpoints of a run as one model, beside what each of them scores of held-out text.

Weights along one training lie in one basin, and their mean is often nearer its bottom than the last of them: "model
soups" (arXiv 2203.05482) average fine-tunings, LAWA the latest checkpoints of a pretraining (arXiv 2306.03241). It pays
where the learning rate is still high; whether it does here is what the table says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmbert.checkpoint.files import CHECKPOINTS, check_files, list_checkpoints
from cmbert.checkpoint.state import read_state
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import Recipe
from cmbert.data.sources import open_shards
from cmbert.errors import CheckpointError, ConfigError
from cmbert.evaluate.pseudo_perplexity import Score, evaluate, place_model
from cmbert.evaluate.table import markdown_table
from cmbert.export.release import open_model
from cmbert.files.folders import building
from cmbert.files.names import real
from cmbert.memory import require_memory
from cmbert.model.heads import MaskedLanguageModel
from cmbert.runs.directory import read_run_recipe
from cmbert.runs.merged import Merge, MergedStep, Scored, write_merged
from cmbert.tokenizer import Tokenizer, load_tokenizer

MERGE_BYTES = 16  # a parameter: the sum in fp64, a checkpoint's fp32 and the model it is loaded into


@dataclass(frozen=True)
class Part:
    """A checkpoint of the mean."""

    step: int
    checkpoint: Path
    weight: float
    """Above 0; only its share of the sum of all counts."""


class RunningMean:
    """The weighted mean of weights that come one model after the other; summed in fp64, rounded once."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.total = 0.0

    def add(self, named: Iterable[tuple[str, torch.Tensor]], weight: float) -> None:
        """Add a model's parameters."""
        for name, parameter in named:
            weighted = parameter.detach().double() * weight
            self.sums[name] = self.sums[name].add_(weighted) if name in self.sums else weighted
        self.total += weight

    def take(self) -> dict[str, torch.Tensor]:
        """Return the mean, fp32; the sums are gone."""
        return {name: (self.sums.pop(name) / self.total).float() for name in list(self.sums)}


def merge_checkpoints(
    run: Path, steps: Sequence[int], output: Path, *, weights: Sequence[float] | None = None, data: Path | None = None
) -> None:
    """Average checkpoints of a run, print the score of each and of the mean, and write it (runs/merged.py).

    Whatever their number, there are never more than two models at once: the running sum, and the one that is scored
    (MERGE_BYTES a parameter in all, where a checkpoint becomes a model). weights: one for each of `steps`, equal by
    default. data: the held-out set, the run's own by default.

    Raises ConfigError or CheckpointError for what the user can mend, before anything is scored.
    """
    recipe = read_run_recipe(run)
    if output.exists():
        raise ConfigError(f"{output} exists: remove it, or name another folder by --output")
    parts = choose_parts(run, steps, weights)
    heldout, tokenizer = data or _own_heldout(run, recipe), load_tokenizer(recipe.data.tokenizer)
    open_shards(heldout, tokenizer)
    for part in parts:
        check_files(part.checkpoint)
    needed = MERGE_BYTES * count_parameters(recipe.model).total
    require_memory(f"merging checkpoints of {run}", needed, torch.device("cpu"), "do it on a machine with more")
    with building(output) as aside:
        mean, scores = RunningMean(), []
        for part in parts:
            model = open_model(part.checkpoint).model
            mean.add(model.named_parameters(), part.weight)
            scores.append(_score(model, tokenizer, heldout, recipe))
            del model
        merged = mean.take()
        scores.append(_score(_model_of(merged, recipe), tokenizer, heldout, recipe))
        merge = _describe(run, heldout, parts, scores)
        write_merged(aside, merged, read_state(parts[-1].checkpoint), recipe, merge, run)
    print(score_table(merge))
    print(_verdict(merge))


def choose_parts(run: Path, steps: Sequence[int], weights: Sequence[float] | None) -> list[Part]:
    """Return the checkpoints of `steps`, oldest first. Raises ConfigError, CheckpointError for a step without one."""
    if len(steps) < 2:
        raise ConfigError("--steps: name two steps or more, for example 800,1000")
    if twice := sorted({step for step in steps if list(steps).count(step) > 1}):
        raise ConfigError(f"--steps: names step {twice[0]} twice")
    if weights is not None and len(weights) != len(steps):
        raise ConfigError(f"--weights: {len(weights)} for {len(steps)} steps; give one for each, or none")
    there = {int(path.name.removeprefix("step_")): path for path in list_checkpoints(run / CHECKPOINTS)}
    if missing := [step for step in steps if step not in there]:
        found = f"there are those of {', '.join(map(str, there))}" if there else "it has none"
        raise CheckpointError(f"{run}: no checkpoint of step {missing[0]}; {found}")
    chosen = zip(steps, weights or [1.0] * len(steps), strict=True)
    return [Part(step, there[step], weight) for step, weight in sorted(chosen)]


def _own_heldout(run: Path, recipe: Recipe) -> Path:
    if not recipe.evaluation.shards:
        raise ConfigError(f"{run}: its recipe names no held-out set (evaluation.shards); name one: --data DIR")
    return Path(recipe.evaluation.shards)


def _model_of(weights: dict[str, torch.Tensor], recipe: Recipe) -> MaskedLanguageModel:
    model = MaskedLanguageModel(recipe.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model.eval()


def _score(model: MaskedLanguageModel, tokenizer: Tokenizer, heldout: Path, recipe: Recipe) -> Score:
    """Score a model as `cmbert eval` does."""
    place_model(model)
    return evaluate(model, tokenizer, heldout, context=recipe.data.context_tokens)


def _describe(run: Path, heldout: Path, parts: Sequence[Part], scores: Sequence[Score]) -> Merge:
    """scores: of the parts in order, and of their mean."""
    total = sum(part.weight for part in parts)
    scored = [Scored(heldout_loss=s.heldout_loss, masked_accuracy=s.masked_accuracy) for s in scores]
    steps = [
        MergedStep(step=part.step, share=part.weight / total, **score)
        for part, score in zip(parts, scored[:-1], strict=True)
    ]
    return Merge(
        run=real(run).name,
        heldout=real(heldout).name,
        masked_tokens=scores[-1].masked_tokens,
        steps=steps,
        merged=scored[-1],
    )


def score_table(merge: Merge) -> str:
    """Return a Markdown table: a row for each step and one for the mean."""
    last = merge["steps"][-1]["heldout_loss"]
    rows: list[tuple[str, Scored]] = [(f"{part['step']:,}", part) for part in merge["steps"]]
    return markdown_table(
        ["step", "held-out loss, nats", "masked accuracy", "difference from the last"],
        [
            [
                name,
                f"{s['heldout_loss']:.4f}",
                f"{100 * s['masked_accuracy']:.2f} %",
                f"{s['heldout_loss'] - last:+.4f}",
            ]
            for name, s in [*rows, ("merged", merge["merged"])]
        ],
    )


def _verdict(merge: Merge) -> str:
    """Return what the table says in a line."""
    best = min(merge["steps"], key=lambda part: part["heldout_loss"])
    gain = best["heldout_loss"] - merge["merged"]["heldout_loss"]
    if gain > 0:
        return f"the merged weights lose {gain:.4f} nats less than the best of them, step {best['step']:,}"
    return f"the merged weights lose {-gain:.4f} nats more than step {best['step']:,} alone: use that one"
