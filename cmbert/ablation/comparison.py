"""The comparison page of a sweep, its Markdown twin and its figures: curves, differences, schedules."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cmbert.ablation.lists import AblationList, ArmRun
from cmbert.ablation.results import ArmResult, read_results
from cmbert.ablation.tables import (
    NAMES,
    NOTES,
    facts_table,
    primary_measure,
    rates_table,
    score_table,
    scored_elsewhere,
    subtitle,
    tasks_table,
)
from cmbert.config.schema import Recipe
from cmbert.errors import CheckpointError
from cmbert.evaluate.table import markdown_table
from cmbert.files.whole import write_json, write_text
from cmbert.html.charts import (
    AXIS,
    FAINT,
    INK,
    NARROW,
    STAGE_COLOURS,
    TICK_STEPS,
    VARIABLES,
    WIDE,
    compact,
    draw,
    token_ticks,
)
from cmbert.html.page import figure, section, table, write_page
from cmbert.schedule import Schedule

SAMPLES = 200  # points of a drawn schedule


def write_comparison(folder: Path, ablation: AblationList, runs: Sequence[ArmRun]) -> Path:
    """Write index.html, results.md and results.json about the trainings that are scored; return the page.

    Raises CheckpointError when none is.
    """
    arms = read_results(ablation, runs)
    if not arms:
        raise CheckpointError(f"{folder}: no training is scored yet; see the log.txt of each")
    measure = primary_measure(runs)
    found = {"question": ablation.question, "measure": measure, "arms": [arm.as_dict() for arm in arms]}
    write_json(folder / "results.json", found)
    head, rows = score_table(arms, measure)
    facts_head, facts_rows = facts_table(arms)
    further = {"Learning rates tried": rates_table(arms), "Fine-tuned": tasks_table(arms)}
    further = {title: found for title, found in further.items() if found[1]}
    said = [*NOTES, *scored_elsewhere(folder, runs)]
    parts = [f"# {ablation.question}", subtitle(arms, runs), markdown_table(head, rows)]
    parts += [markdown_table(*of_one) for of_one in further.values()]
    parts += ["\n".join(f"- {note}" for note in said), markdown_table(facts_head, facts_rows)]
    write_text(folder / "results.md", "\n\n".join(parts) + "\n")
    notes = "".join(f'<p class="faint">{escape(note)}</p>' for note in said)
    write_page(
        folder / "index.html",
        title=ablation.question,
        subtitle=escape(subtitle(arms, runs)),
        sections=[
            _curves_section(arms, measure),
            section("Final scores", table(head, rows, "numbers")) + notes,
            *(section(title, table(*of_one, "numbers")) for title, of_one in further.items()),
            _schedules_section(arms),
            section("What differs, and what it cost", table(facts_head, facts_rows, "texts")),
        ],
    )
    return folder / "index.html"


def _colour(index: int) -> str:
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


def _keys(arms: Sequence[ArmResult]) -> str:
    items = (
        f'<span><i style="background:var(--{VARIABLES[_colour(index)]})"></i><b>{escape(arm.arm.name)}</b> '
        f"{escape(arm.arm.what)}</span>"
        for index, arm in enumerate(arms)
    )
    return f'<p class="keys">{"".join(items)}</p>'


def _curves_section(arms: Sequence[ArmResult], measure: str) -> str:
    """Return the held-out curves, whole and late, and the final differences with their intervals."""
    name, unit = NAMES[measure]
    curves = [(*arm.curve, _scale(arm, measure)) for arm in arms]
    figures = []
    if any(len(tokens) for tokens, *_ in curves):
        note = f"{unit}; line: mean of the seeds, band: lowest to highest; same rows and masks for all arms"
        for title, size, late in ((f"{name.capitalize()}", WIDE, False), ("The last third", NARROW, True)):
            drawing = draw(size, title, partial(_plot_curves, curves=curves, late=late))
            if size is WIDE:
                drawing += draw(NARROW, title, partial(_plot_curves, curves=curves, late=False))
            figures.append(figure(title, note if size is WIDE else f"{unit}; the same, closer", drawing))
    question = next(iter(arms[0].scores))
    found = [(index, arm.differences.get(question, {}).get(measure)) for index, arm in enumerate(arms)]
    later = [(index, difference) for index, difference in found if difference]
    if later:
        title = f"Difference from {arms[0].arm.name}"
        drawing = draw(NARROW, title, partial(_plot_differences, names=[a.arm.name for a in arms], found=later))
        figures.append(figure(title, f"{name}, {question}; {unit}; bar: 95 % interval; left is better", drawing))
    if not figures:
        return ""
    pair = f'<div class="pair">{"".join(figures[1:])}</div>' if len(figures) > 1 else ""
    return f"<h2>Held-out text</h2>\n{_keys(arms)}\n{figures[0]}{pair}"


def _scale(arm: ArmResult, measure: str) -> float:
    """Return what turns an arm's nats per token into the measure, from its final score."""
    if measure == "heldout_loss":
        return 1.0
    scores = next(iter(arm.scores.values()))
    return scores[measure]["mean"] / scores["heldout_loss"]["mean"]


def _plot_curves(axes: Axes, *, curves: Sequence[tuple[np.ndarray, np.ndarray, float]], late: bool) -> None:
    """Draw mean and range of every arm over tokens seen; `late`: only the last third."""
    for index, (tokens, losses, scale) in enumerate(curves):
        if not len(tokens):
            continue
        shown = tokens >= (2 / 3 * tokens[-1] if late else 0)
        x, y = tokens[shown], scale * losses[:, shown]
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=_colour(index), alpha=0.18, linewidth=0)
        axes.plot(x, y.mean(axis=0), color=_colour(index), linewidth=2, marker="o", markersize=3.5)
    token_ticks(axes)


def _plot_differences(axes: Axes, *, names: Sequence[str], found: Sequence[tuple[int, dict[str, Any]]]) -> None:
    """Draw a dot and its interval for every arm, one under the other in the list's order."""
    for row, (index, difference) in enumerate(reversed(found)):
        if difference["half_width"] is not None:
            ends = [difference["mean"] - difference["half_width"], difference["mean"] + difference["half_width"]]
            axes.plot(ends, [row, row], color=_colour(index), linewidth=3, solid_capstyle="butt")
        axes.plot(difference["values"], [row - 0.22] * len(difference["values"]), ".", color=FAINT, markersize=5)
        axes.plot(difference["mean"], row, "o", color=_colour(index), markersize=8)
        axes.annotate(names[index], (0, row), (4, 9), xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=_colour(index))  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1.2, linestyle=(0, (5, 4)))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=AXIS, linewidth=0.5)
    axes.margins(x=0.12)
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(found) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.set_xlabel("minus the first arm; dots: seeds", loc="right")


def _schedules_section(arms: Sequence[ArmResult]) -> str:
    """Return the mask and learning rates of the arms, drawn where they differ."""
    stages = [arm.runs[0].stages for arm in arms]
    figures = []
    for title, note, values in (
        ("Mask rate", "% of the tokens that may be masked", _mask_rates),
        ("Learning rate", "of the optimizer", _learning_rates),
    ):
        curves = [values(found) for found in stages]
        if len({curve[1].tobytes() for curve in curves}) > 1:
            drawing = draw(NARROW, title, partial(_plot_schedules, curves=curves))
            figures.append(figure(title, note, drawing))
    return f'<h2>Schedules</h2>\n<div class="pair">{"".join(figures)}</div>' if figures else ""


def _sampled(stages: Sequence[Recipe], value: Callable[[Schedule, int], float]) -> tuple[np.ndarray, np.ndarray]:
    tokens, values, before = [], [], 0
    for schedule in map(Schedule.of, stages):
        total = schedule.total_tokens
        for at in np.linspace(0, total, SAMPLES).astype(int).tolist():
            tokens.append(before + at)
            values.append(value(schedule, at))
        before += total
    return np.array(tokens), np.array(values)


def _mask_rates(stages: Sequence[Recipe]) -> tuple[np.ndarray, np.ndarray]:
    return _sampled(stages, lambda schedule, at: 100 * schedule.mask_rate_at(at))


def _learning_rates(stages: Sequence[Recipe]) -> tuple[np.ndarray, np.ndarray]:
    return _sampled(stages, Schedule.learning_rate_at)


def _plot_schedules(axes: Axes, *, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for index, (tokens, values) in enumerate(curves):
        axes.plot(tokens, values, color=_colour(index), linewidth=2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: compact(value))
    token_ticks(axes)
