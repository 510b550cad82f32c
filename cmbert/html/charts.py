"""The drawings of the report page: what one stage left behind, as curves in inline SVG."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cmbert.html.page import figure

MAX_POINTS = 1500  # of one drawn curve; a million steps still make a page of some hundred kB
TICK_STEPS = [1, 2, 2.5, 5, 10]
WIDE, NARROW = (1054, 330), (516, 270)  # width and height of a drawing, CSS pixels; text is 12 in both
# Matplotlib draws in these stand-ins; the style sheet says what they are in light and in dark.
INK, FAINT, GRID, AXIS, CARD = "#010101", "#010102", "#010103", "#010104", "#010105"
STAGE_COLOURS = ("#020001", "#020002", "#020003", "#020004", "#020005", "#020006")
PHASE_COLOURS = ("#030001", "#030002", "#030003", "#030004", "#030005")
VARIABLES = {INK: "ink", FAINT: "ink-faint", GRID: "grid", AXIS: "axis", CARD: "card"}
VARIABLES |= {colour: f"stage-{number}" for number, colour in enumerate(STAGE_COLOURS, start=1)}
VARIABLES |= {colour: f"phase-{number}" for number, colour in enumerate(PHASE_COLOURS, start=1)}


@dataclass(frozen=True)
class Stage:
    """One run directory as read; `start_tokens` is what the stages before it have seen."""

    name: str
    folder: Path
    number: int
    start_tokens: int
    columns: dict[str, np.ndarray]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    evaluation: dict[str, Any]
    sources: list[str]
    """Names of the sources, in the recipe's order."""
    source_loss: np.ndarray
    """Loss of each source, shape (steps, sources); NaN where there is none."""
    source_tokens: list[int]
    """Tokens seen of each source."""
    unit_lengths: list[int]
    """Sampled maskable units by their length, 1, 2, ... tokens; the last entry holds longer ones, too."""
    events: list[dict[str, Any]]
    """What happened to the run, oldest first."""
    branch_of: str = ""
    """RUN@STEP, if it is a branch of another run."""
    branch_tokens: int = 0
    """Tokens that a branch's parent had seen at that step."""
    parent: str = ""
    """Name of the run it started from, if that is shown, too."""
    is_side: bool = False
    """Whether it is beside the main line: a side branch, or a run of its own."""

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one figure of every step, shape (steps,); tokens include those of earlier stages."""
        return self.columns[name] + (self.start_tokens if name == "tokens" else 0)

    @property
    def colour(self) -> str:
        """The stand-in for this stage's colour."""
        return STAGE_COLOURS[(self.number - 1) % len(STAGE_COLOURS)]

    @property
    def context(self) -> int:
        """Tokens of a row; 0 where that is not known."""
        return self.recipe.get("data", {}).get("context_tokens", 0)

    def fact(self, key: str) -> str:
        """Return a value of the recipe by its dotted key, as text; a dash if it has none."""
        section, name = key.split(".")
        value = self.recipe.get(section, {}).get(name, "–")
        return f"{value:,}" if isinstance(value, int) else str(value)


Curve = Callable[[Stage], np.ndarray]


def compact(value: float) -> str:
    """Return a count as people say it: 640, 1.8k, 2.05M, 1.1T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # else 999,600 would be 1e+03k
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def power_of_ten(highest: float) -> tuple[float, str]:
    """Return the power of ten that `highest` is a few times of, as a number and as people write it: 1e-4, 10⁻⁴.

    1 for what is not above 0 or has no such power as a number.
    """
    exponent = int(np.floor(np.log10(highest))) if 1e-300 < highest < 1e300 else 0
    return 10.0**exponent, "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def half_window(num_steps: int) -> int:
    """Steps to either side that smoothing averages over: an eightieth of the stage, at least 2."""
    return max(2, num_steps // 80)


def smooth(values: np.ndarray) -> np.ndarray:
    """Average the finite values of neighbouring steps; nan where there is none nearby.

    Symmetric at the start, where a curve is steep, and one-sided at the end.
    """
    known, index = np.isfinite(values), np.arange(len(values))
    before = np.minimum(index, half_window(len(values)))
    first, last = index - before, np.minimum(index + before, len(values) - 1) + 1
    sums, counts = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(known, values, 0.0), known))
    num_known = counts[last] - counts[first]
    return np.divide(sums[last] - sums[first], num_known, out=np.full(len(values), np.nan), where=num_known > 0)


def decimate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most MAX_POINTS finite points: the lowest and the highest of each stretch, so that no spike is lost."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= MAX_POINTS:
        return x, y
    bounds = np.linspace(0, len(x), MAX_POINTS // 2, dtype=np.int64)
    extremes = [first + pick(y[first:last]) for first, last in pairwise(bounds) for pick in (np.argmin, np.argmax)]
    kept = np.unique([0, *extremes, len(x) - 1])
    return x[kept], y[kept]


def draw(size: tuple[int, int], name: str, paint: Callable[[Axes], None]) -> str:
    """Return an inline SVG of `size` with real text, in the page's colours; `paint` fills the axes."""
    (width, height), sink = size, io.StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": f"{name}{size}", "font.size": 12, "text.color": INK}
    style |= {"axes.edgecolor": AXIS, "axes.labelcolor": FAINT, "xtick.color": AXIS, "ytick.color": AXIS}
    style |= {"xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT, "grid.color": GRID}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width / 72, height / 72))  # 72 points to the inch: a point is a pixel of the SVG
        axes = figure.add_axes((46 / width, 46 / height, 1 - 60 / width, 1 - 58 / height))
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", linewidth=1)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
        paint(axes)
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    svg = sink.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1 and the like: every drawing would repeat them
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    opening = f'<svg class="{"wide" if size == WIDE else "narrow"}" role="img" aria-label="{name}" viewBox='
    return re.sub(r'<svg[^>]*?viewBox=("[^"]+")[^>]*>', rf"{opening}\1>", svg, count=1)


def chart(title: str, note: str, stages: Sequence[Stage], line: Curve, light: Curve | None = None) -> str:
    """Return one framed drawing over tokens seen, from zero up."""

    def paint(axes: Axes) -> None:
        plot_curves(axes, stages, line, light)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: compact(value))

    return figure(title, note, draw(NARROW, title, paint))


def plot_curves(axes: Axes, stages: Sequence[Stage], line: Curve, light: Curve | None) -> None:
    """Draw a light curve and the line that the eye should follow, stage after stage."""
    for stage in stages:
        if light:
            axes.plot(*decimate(stage["tokens"], light(stage)), color=stage.colour, alpha=0.35, linewidth=1)
        axes.plot(*decimate(stage["tokens"], line(stage)), color=stage.colour, linewidth=2)
    token_axis(axes, stages)


def token_axis(axes: Axes, stages: Sequence[Stage]) -> None:
    """Make the tokens seen the horizontal axis, and mark where stages begin."""
    for start in sorted({stage.start_tokens for stage in stages if stage.start_tokens}):
        axes.axvline(start, color=AXIS, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xlim(0, 1.01 * max(stage["tokens"][-1] for stage in stages))
    token_ticks(axes)


def token_ticks(axes: Axes) -> None:
    """Say on the horizontal axis that it is the tokens seen."""
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.set_xlabel("tokens seen", loc="right")


def plot_loss(axes: Axes, stages: Sequence[Stage], unigram: float | None) -> None:
    """Draw the training loss, the unigram loss and the held-out loss: in mid-training, and where a stage was scored."""
    plot_curves(axes, stages, lambda s: smooth(s["loss"]), lambda s: s["loss"])
    for stage in stages:
        found = np.isfinite(stage["heldout_loss"])
        axes.plot(stage["tokens"][found], stage["heldout_loss"][found], "o-", color=stage.colour, mec=CARD, linewidth=1)
    scored = [stage for stage in stages if stage.evaluation.get("heldout_loss") is not None]
    label = partial(axes.annotate, textcoords="offset points", ha="right")
    for line, stage in enumerate(reversed(scored)):
        loss, end = stage.evaluation["heldout_loss"], stage["tokens"][-1]
        axes.plot(end, loss, "D", color=stage.colour, markersize=9, mec=CARD, mew=2, clip_on=False, zorder=5)
        after = stage.name if stage.is_side else f"stage {stage.number}"
        text = f"◆ held-out {loss:.2f}" + (f", after {after}" if len(stages) > 1 else "")
        label(text, (1, 0), (-8, 8 + 17 * line), xycoords="axes fraction", color=stage.colour)
    if unigram is not None:
        axes.axhline(unigram, color=INK, linewidth=1.2, linestyle=(0, (5, 4)))
        label(f"unigram {unigram:.2f}", (1, unigram), (-8, 5), xycoords=("axes fraction", "data"))
    low, high = axes.get_ylim()
    share = (10 + 17 * len(scored)) / (NARROW[1] - 58)  # the labels' own strip at the bottom, below every curve
    axes.set_ylim(low - (high - low) * share / (1 - share), high)


def plot_positions(axes: Axes, stages: Sequence[Stage]) -> None:
    """Draw the held-out loss of each position bucket, named by where it starts."""
    starts = sorted({bucket["start"] for stage in stages for bucket in stage.evaluation["by_position"]})
    for stage in stages:
        buckets = stage.evaluation["by_position"]
        known = [(starts.index(bucket["start"]), bucket["loss"]) for bucket in buckets if bucket["loss"] is not None]
        axes.plot(
            *np.array(known, np.float64).reshape(-1, 2).T, color=stage.colour, linewidth=2, marker="o", markersize=7
        )
    axes.set_xticks(range(len(starts)), [f"{start:,}+" for start in starts])
    axes.set_xlim(-0.5, len(starts) - 0.5)
    axes.margins(y=0.15)
    axes.set_xlabel("position, tokens", loc="right")
