"""Learning curves: the dev score after each epoch of the setting that was chosen, as text and as drawings."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cmbert.evaluate.table import markdown_table
from cmbert.html.charts import NARROW, STAGE_COLOURS, VARIABLES, draw
from cmbert.html.page import figure

HEADING = "Learning curves"
NOTE = (
    "Dev score after each epoch, percent, mean over the seeds. The last epoch is what is reported: a better one before "
    "it is not picked."
)
MOST_SHOWN = 10  # epochs of a row of text; of more, some evenly between the first and the last (ours)


def mean_curve(result: Mapping[str, Any]) -> list[float]:
    """Return the mean over the seeds of the first score after each epoch, percent; empty if it was not kept."""
    seeds = [[epoch[result["scores"][0]] for epoch in curve["dev"]] for curve in result.get("curves", ())]
    if not all(seeds):  # a seed of before curves were kept
        return []
    return [sum(epoch) / len(epoch) for epoch in zip(*seeds, strict=True)]


def curves_markdown(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a section with a row per result; none if no result has a curve."""
    rows = [[r["task"], r["model"], spell_curve(curve)] for r in results if (curve := mean_curve(r))]
    if not rows:
        return []
    return ["", f"## {HEADING}", NOTE, "", markdown_table(["task", "model", "dev after epoch"], rows)]


def spell_curve(curve: Sequence[float]) -> str:
    """Return `epoch: score` of at most MOST_SHOWN epochs, the first and the last among them."""
    last = len(curve) - 1
    parts = min(last, MOST_SHOWN - 1)
    shown = [round(last * step / max(parts, 1)) for step in range(parts + 1)]
    return ", ".join(f"{epoch + 1}: {curve[epoch]:.2f}" for epoch in shown)


def curves_section(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a drawing per task (HTML) with a line per model; empty if no result has a curve."""
    found = {(result["task"], result["model"]): curve for result in results if (curve := mean_curve(result))}
    if not found:
        return ""
    colours = {model: _colour(index) for index, model in enumerate(dict.fromkeys(model for _, model in found))}
    keys = "".join(
        f'<span><i style="background:var(--{VARIABLES[colour]})"></i>{escape(model)}</span>'
        for model, colour in colours.items()
    )
    figures = []
    for task in dict.fromkeys(task for task, _ in found):
        curves = [(colours[model], curve) for (of, model), curve in found.items() if of == task]
        figures.append(figure(task, "percent on dev", draw(NARROW, task, partial(_plot, curves=curves))))
    pairs = f'<div class="pair">{"".join(figures)}</div>'
    return f'<h2>{HEADING}</h2>\n<p class="keys">{keys}</p>\n{pairs}\n<p class="faint">{NOTE}</p>'


def _colour(index: int) -> str:
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


def _plot(axes: Axes, *, curves: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Draw each model's line in its colour over the epochs."""
    for colour, curve in curves:
        axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=2, marker="o", markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.margins(x=0.05, y=0.15)
    axes.set_xlabel("epoch", loc="right")
