"""A list of trainings that differ in one thing each, at one token budget: TOML -> checked recipes.

A list names a base recipe and arms; an arm is a name, a line about it, and the part of a recipe that differs. A second
part, `then`, makes a second stage of it. An arm with learning rates is trained at each with the first seed, and at the
best of them with the others. Lists may extend each other, as recipes do.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cmbert.config.load import build, build_recipe, merge, named_in, read_table
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.evaluate.domains import LEAST_CONTEXT
from cmbert.transfer.tasks.task import find_task

SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%")
MOST_SEEDS = 1_000  # each is a training
MOST_CONTEXT = 2**24  # tokens, as data.context_tokens
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train. A number of tokens may be a share of the arm's budget, such as "20 %"."""

    name: str
    """Also its folder: letters, digits, . _ -"""
    what: str
    """A line about it, for the table."""
    set: dict = field(default_factory=dict)
    """What differs from the base recipe, as a recipe's tables."""
    then: dict = field(default_factory=dict)
    """What differs again in a second stage that goes on from the first; empty = there is none."""
    learning_rates: tuple[float, ...] = ()
    """Values of schedule.lr_max to choose from, with lr_min in the same ratio as without; none = the recipe's alone."""
    tokens: str = ""
    """The arm's budget as a share of the base recipe's, such as "50 %"; empty = the same. Nothing else is scaled."""


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
    tasks: tuple[str, ...] = ()
    """Tasks that each training is fine-tuned on, as `cmbert finetune --task` takes them."""
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class ArmRun:
    """One training of one arm with one seed, at one of the arm's learning rates if it has any: one stage or two."""

    arm: str
    seed: int
    folder: Path
    stages: tuple[Recipe, ...]
    rate: float | None = None

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
    for arm in found.arms:
        _check_arm(arm, f"{path}: {arm.name}")
    for name in found.tasks:
        if name.endswith(".toml"):
            named_in(path, "tasks", name)
    tasks = [find_task(name, f"{path}: tasks").name for name in found.tasks]
    if twice := [name for name in tasks if tasks.count(name) > 1]:
        raise ConfigError(f"{path}: tasks: two are named {twice[0]!r}; name one of them")
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


def _check_arm(arm: Arm, where: str) -> None:
    """Raise ConfigError for learning rates that are none or have one folder, and for tokens that are no share."""
    for rate in arm.learning_rates:
        if not rate > 0:
            raise ConfigError(f"{where}: learning_rates: {rate} must be positive")
    if len({f"{rate:g}" for rate in arm.learning_rates}) < len(arm.learning_rates):
        raise ConfigError(f"{where}: learning_rates: two are the same to six digits; remove one")
    schedule = arm.set.get("schedule")
    if arm.learning_rates and isinstance(schedule, dict) and "lr_max" in schedule:
        raise ConfigError(f"{where}: set.schedule.lr_max: learning_rates names the rates; remove one of the two")
    if arm.tokens and not (_share(arm.tokens) or 0) > 0:
        raise ConfigError(f'{where}: tokens: {arm.tokens!r} is no share of the base recipe\'s budget, such as "50 %"')


def plan_runs(
    ablation: AblationList, where: Path, folder: Path, num_seeds: int, best: Mapping[str, float] | None = None
) -> list[ArmRun]:
    """Return every training, seed by seed, so that a sweep cut short has compared all arms; `where`: the list's file.

    best: the learning rate of every arm that has chosen one; an arm with rates has no second seed before that.
    Raises ConfigError for an arm that is no recipe, trains on another number of tokens or has no held-out set.
    """
    base = read_table(Path(ablation.base))
    budget = build_recipe(base, ablation.base).train.total_tokens
    runs = []
    for seed in range(num_seeds):
        for arm, rate in _arms_and_rates(ablation, {} if seed == 0 else best or {}, every=seed == 0):
            place = folder / arm.name / ("" if rate is None else f"lr-{rate:g}") / f"seed{seed}"
            own = round(budget * (_share(arm.tokens) or 1))
            stages = _stages(arm, base, own, place, seed, rate, where=f"{where}: {arm.name}")
            total = sum(stage.train.total_tokens for stage in stages)
            if total != own:
                whose = f"its share of {arm.tokens} is" if arm.tokens else "the base recipe on"
                raise ConfigError(
                    f"{where}: {arm.name}: trains on {total:,} tokens, {whose} {own:,}; set its "
                    "train.total_tokens so that all arms have the same budget"
                )
            runs.append(ArmRun(arm.name, seed, place, stages, rate))
    return runs


def _arms_and_rates(
    ablation: AblationList, best: Mapping[str, float], *, every: bool
) -> Iterator[tuple[Arm, float | None]]:
    """Yield what one seed trains: the first rate of every arm, the second of every arm; or only the best."""
    if not every:
        yield from ((arm, best.get(arm.name)) for arm in ablation.arms if arm.name in best or not arm.learning_rates)
        return
    for number in range(max(1, *(len(arm.learning_rates) for arm in ablation.arms))):
        for arm in ablation.arms:
            rates: tuple[float | None, ...] = arm.learning_rates or (None,)
            if number < len(rates):
                yield arm, rates[number]


def _stages(
    arm: Arm, base: dict, budget: int, place: Path, seed: int, rate: float | None, where: str
) -> tuple[Recipe, ...]:
    changes = [resolve_shares(part, budget, where) for part in (arm.set, arm.then) if part or part is arm.set]
    stages: list[Recipe] = []
    table = merge(base, {"train": {"total_tokens": budget}})
    for number, change in enumerate(changes, start=1):
        table = merge(table, change)
        if stages:
            table = merge(table, {"train": {"init_from": str(place / "stage1")}})
        elif rate is not None:
            own = build_recipe(table, where).schedule
            lr_min = float(f"{rate * own.lr_min / own.lr_max:.6g}")
            table = merge(table, {"schedule": {"lr_max": rate, "lr_min": lr_min}})
        run = place / f"stage{number}"
        train = {"seed": build_recipe(table, where).train.seed + seed}
        recipe = build_recipe(merge(table, {"run_directory": str(run), "train": train}), where)
        if not recipe.evaluation.shards:
            raise ConfigError(f"{where}: evaluation.shards: name the held-out set that the arms are scored on")
        stages.append(recipe)
    return tuple(stages)


def _share(text: str) -> float | None:
    """Return "20 %" as .2, or None where a text is no share."""
    found = SHARE.fullmatch(text)
    return float(found[1]) / 100 if found else None


def resolve_shares(table: dict[str, Any], budget: int, where: str) -> dict[str, Any]:
    """Return `table` with the shares of the budget, "20 %" of keys that end in _tokens, as whole numbers of tokens."""

    def resolve(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return resolve_shares(value, budget, where)
        if isinstance(value, str) and key.endswith("_tokens"):
            share = _share(value)
            if share is None:
                raise ConfigError(f'{where}: {key}: {value!r} is neither a number of tokens nor a share such as "20 %"')
            return round(budget * share)
        return value

    return {key: resolve(key, value) for key, value in table.items()}
