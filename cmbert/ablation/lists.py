"""A list of trainings that differ in one thing each, at one token budget: TOML -> checked recipes.

A list names a base recipe and arms; an arm is a name, a line about it, and the part of a recipe that differs. A second
part, `then`, makes a second stage of it. Lists may extend each other, as recipes do.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cmbert.config.load import build, build_recipe, merge, named_in, read_table
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.evaluate.domains import LEAST_CONTEXT

SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%")
MOST_SEEDS = 1_000  # each is a training
MOST_CONTEXT = 2**24  # tokens, as data.context_tokens
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train. A number of tokens may be a share of the base recipe's budget, such as "20 %"."""

    name: str
    """Also its folder: letters, digits, . _ -"""
    what: str
    """A line about it, for the table."""
    set: dict = field(default_factory=dict)
    """What differs from the base recipe, as a recipe's tables."""
    then: dict = field(default_factory=dict)
    """What differs again in a second stage that goes on from the first; empty = there is none."""


@dataclass(frozen=True, kw_only=True)
class AblationList:
    """What to train and how to score it. The first arm is what the others are compared with."""

    question: str
    base: str
    """Recipe that all arms share; relative to the working directory."""
    seeds: int = 3
    """Trainings of each arm: train.seed and the numbers after it."""
    contexts: tuple[int, ...] = ()
    """Row lengths of the final score, tokens; none = the base recipe's."""
    units: tuple[Literal["word", "token"], ...] = ("word",)
    """What the final score hides."""
    prepare: tuple[str, ...] = ()
    """Commands of data_tools that make text, tokenizers and shards, in order; done before the first training."""
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class ArmRun:
    """One training of one arm with one seed: one stage or two."""

    arm: str
    seed: int
    folder: Path
    stages: tuple[Recipe, ...]

    @property
    def score_file(self) -> Path:
        """Where `cmbert eval` writes what the run scores; there once the run is done."""
        return self.folder / "score.json"


def load_list(path: Path, base: Path | None = None) -> AblationList:
    """Read a list; `base` takes the place of its base recipe, for which nothing is prepared. Raises ConfigError."""
    table = read_table(path)
    found = build(AblationList, table, str(path))
    names = [arm.name for arm in found.arms]
    for name in names:
        if not ARM_NAME.fullmatch(name):
            raise ConfigError(f"{path}: arms: name {name!r} is no folder name; use letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise ConfigError(f"{path}: arms: two are named {name!r}; rename one")
    if len(names) < 2:
        raise ConfigError(f"{path}: arms: name at least two to compare")
    if not 1 <= found.seeds <= MOST_SEEDS:
        raise ConfigError(f"{path}: seeds: {found.seeds} must be 1 or more, {MOST_SEEDS} at most")
    if wrong := [context for context in found.contexts if not LEAST_CONTEXT <= context <= MOST_CONTEXT]:
        raise ConfigError(
            f"{path}: contexts: {wrong[0]} must be at least {LEAST_CONTEXT} tokens, {MOST_CONTEXT} at most"
        )
    if not found.units:
        raise ConfigError(f"{path}: units: name what the final score hides, word or token")
    prepare = () if base else found.prepare
    found = replace(found, base=str(base or named_in(path, "base", found.base)), prepare=prepare)
    if found.contexts:
        return found
    return replace(found, contexts=(build_recipe(read_table(Path(found.base)), found.base).data.context_tokens,))


def plan_runs(ablation: AblationList, where: Path, folder: Path, num_seeds: int) -> list[ArmRun]:
    """Return every training, seed by seed, so that a sweep cut short has compared all arms; `where`: the list's file.

    Raises ConfigError for an arm that is no recipe, trains on another number of tokens or has no held-out set.
    """
    base = read_table(Path(ablation.base))
    budget = build_recipe(base, ablation.base).train.total_tokens
    runs = []
    for seed in range(num_seeds):
        for arm in ablation.arms:
            place = folder / arm.name / f"seed{seed}"
            stages = _stages(arm, base, budget, place, seed, where=f"{where}: {arm.name}")
            total = sum(stage.train.total_tokens for stage in stages)
            if total != budget:
                raise ConfigError(
                    f"{where}: {arm.name}: trains on {total:,} tokens, the base recipe on {budget:,}; set its "
                    "train.total_tokens so that all arms have the same budget"
                )
            runs.append(ArmRun(arm.name, seed, place, stages))
    return runs


def _stages(arm: Arm, base: dict, budget: int, place: Path, seed: int, where: str) -> tuple[Recipe, ...]:
    changes = [resolve_shares(part, budget, where) for part in (arm.set, arm.then) if part or part is arm.set]
    stages: list[Recipe] = []
    table = base
    for number, change in enumerate(changes, start=1):
        table = merge(table, change)
        if stages:
            table = merge(table, {"train": {"init_from": str(place / "stage1")}})
        run = place / f"stage{number}"
        own = build_recipe(table, where).train
        train = {"seed": own.seed + seed}
        recipe = build_recipe(merge(table, {"run_directory": str(run), "train": train}), where)
        if not recipe.evaluation.shards:
            raise ConfigError(f"{where}: evaluation.shards: name the held-out set that the arms are scored on")
        stages.append(recipe)
    return tuple(stages)


def resolve_shares(table: dict[str, Any], budget: int, where: str) -> dict[str, Any]:
    """Return `table` with the shares of the budget, "20 %" of keys that end in _tokens, as whole numbers of tokens."""

    def resolve(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return resolve_shares(value, budget, where)
        if isinstance(value, str) and key.endswith("_tokens"):
            share = SHARE.fullmatch(value)
            if not share:
                raise ConfigError(f'{where}: {key}: {value!r} is neither a number of tokens nor a share such as "20 %"')
            return round(budget * float(share[1]) / 100)
        return value

    return {key: resolve(key, value) for key, value in table.items()}
