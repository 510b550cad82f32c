"""The tables of a sweep, as head and rows of text: scores, learning rates tried, tasks, what each arm is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbert.ablation.lists import ArmRun
from cmbert.ablation.results import ArmResult, verdict
from cmbert.config.load import differing_keys
from cmbert.config.schema import Recipe
from cmbert.html.charts import compact

NAMES = {
    "heldout_loss": ("held-out loss", "nats per masked token"),
    "bits_per_character": ("held-out bits per character", "bits"),
}
SHOWN_SKIP = ("run_directory", "train.seed", "train.init_from")  # differ between all runs
NOTES = (
    "± is half the 95 % interval of Student's t over the seeds (their number in brackets). A difference is taken seed "
    "by seed: the same seed has the same rows in the same order in every arm that reads the same shards.",
    "“No difference seen” means that the interval of the difference holds zero: a smaller difference may exist.",
    "Intervals know nothing of how many arms were looked at: of twenty, one is expected to differ by chance.",
)


def scored_elsewhere(folder: Path, runs: Sequence[ArmRun]) -> list[str]:
    """Return a note that counts what earlier calls scored in `folder` and this list leaves out: that was tried, too."""
    ours = {run.score_file for run in runs}
    there = [path for pattern in ("*/seed*/score.json", "*/lr-*/seed*/score.json") for path in folder.glob(pattern)]
    others = sorted(str(path.parent.relative_to(folder)) for path in there if path not in ours)
    if not others:
        return []
    return [f"Tried here before and not compared above: {len(others)} trainings ({', '.join(others)})."]


def primary_measure(runs: Sequence[ArmRun]) -> str:
    """Return what arms are compared by: nats per token, unless they have several tokenizers, whose tokens differ."""
    tokenizers = {run.stages[-1].data.tokenizer for run in runs}
    return "heldout_loss" if len(tokenizers) == 1 else "bits_per_character"


def subtitle(arms: Sequence[ArmResult], runs: Sequence[ArmRun]) -> str:
    """Return the line under the title: how much was trained."""
    model = runs[0].stages[0].model
    budgets = sorted({sum(stage.train.total_tokens for stage in run.stages) for run in runs})
    tokens = f"{budgets[0]:,} tokens each" if len(budgets) == 1 else f"{budgets[0]:,} to {budgets[-1]:,} tokens"
    done = sum(
        len({0, *(run.seed for run in arm.runs)}) + len(arm.tried) - 1 if arm.tried else len(arm.runs) for arm in arms
    )
    return (
        f"{done} of {len(runs)} trainings of {tokens} · {model.num_layers} layers x {model.hidden_size} · "
        f"{len({run.arm for run in runs})} arms x {len({run.seed for run in runs})} seeds"
    )


def spell(found: dict[str, Any], sign: str = "", digits: int = 4) -> str:
    """Return an interval for people; `sign` "+" for a difference."""
    text = f"{found['mean']:{sign}.{digits}f}"
    if found["half_width"] is not None:
        text += f" ± {found['half_width']:.{digits}f}"
    return text + ("" if sign else f" ({len(found['values'])})")


def score_table(arms: Sequence[ArmResult], measure: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the final scores, a row per arm and question; rate and tokens if arms have own ones."""
    rated, budgets = any(arm.rate is not None for arm in arms), len({arm.total_tokens for arm in arms}) > 1
    head = ["arm", *["tokens"] * budgets, *["learning rate"] * rated, "scored on", NAMES[measure][0]]
    head += ["minus the first arm", "verdict", "masked accuracy, %"]
    rows = []
    for question in arms[0].scores:
        for arm in arms:
            if question not in arm.scores:
                continue
            difference = arm.differences.get(question, {}).get(measure)
            scores = arm.scores[question]
            row = [arm.arm.name, *[f"{arm.total_tokens:,}"] * budgets]
            row += ["–" if arm.rate is None else f"{arm.rate:g}"] * rated
            row += [str(question), spell(scores[measure]), _spell_difference(difference)]
            row += [verdict(difference, lower_is_better=True), f"{100 * scores['masked_accuracy']['mean']:.2f}"]
            rows.append(row)
    return head, rows


def rates_table(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the learning rates tried, each with the first seed; no rows where no arm has any."""
    head, rows = ["arm", "learning rate", "held-out loss, first seed", "chosen"], []
    for arm in arms:
        chosen = f"best, at the edge: try {arm.edge}" if arm.edge else "best"
        for rate in sorted(arm.arm.learning_rates):
            loss = f"{arm.tried[rate]:.4f}" if rate in arm.tried else "no score"
            rows.append([arm.arm.name, f"{rate:g}", loss, chosen if rate == arm.rate else ""])
    return head, rows


def tasks_table(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the fine-tuned scores: a row per task and arm; no rows where no task was run."""
    head = ["arm", "fine-tuned on", "dev score, %", "minus the first arm", "verdict"]
    rows = []
    for name in dict.fromkeys(name for arm in arms for name in arm.tasks):
        for arm in arms:
            if found := arm.tasks.get(name):
                difference = found["difference"]
                row = [arm.arm.name, name, spell(found, digits=2), _spell_difference(difference, digits=2)]
                is_compared = difference is not None or arm is arms[0]
                rows.append([*row, verdict(difference, lower_is_better=False) if is_compared else "–"])
    return head, rows


def _spell_difference(difference: dict[str, Any] | None, digits: int = 4) -> str:
    return "–" if difference is None else spell(difference, sign="+", digits=digits)


def facts_table(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of what each arm is: its keys that differ from the first arm's, and what it cost."""
    head = ["arm", "what", "differs in", "characters a token", "tokens/s", "minutes a training"]
    first = arms[0].runs[0]
    rows = []
    for arm in arms:
        shown = "–" if arm.characters_per_token is None else f"{arm.characters_per_token:.3f}"
        row = [arm.arm.name, arm.arm.what, differences_of(arm.runs[0].stages, first.stages), shown]
        rows.append([*row, f"{arm.tokens_per_second:,.0f}", f"{arm.minutes:.1f}"])
    return head, rows


def differences_of(stages: Sequence[Recipe], first: Sequence[Recipe]) -> str:
    """Return the keys and values in which `stages` differ from `first`; a further stage by its length."""
    found = []
    for key in differing_keys(stages[0], first[0]):
        if key not in SHOWN_SKIP:
            value: Any = stages[0]
            for part in key.split("."):
                value = getattr(value, part)
            found.append(f"{key} = {value if not isinstance(value, tuple) else ', '.join(s.path for s in value)}")
    for stage in stages[1:]:
        found.append(f"then {compact(stage.train.total_tokens)} tokens in rows of {stage.data.context_tokens:,}")
    return "; ".join(found) or "–"
