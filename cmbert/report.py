"""`cmbert report`: one self-contained HTML page about a run: headline figures, curves, samples, what was run.

Reads metrics.jsonl, resolved.toml and environment.json of each stage and, where they are, eval.json, fill_mask.json
and summary.json. First what is read, then the sections, then the drawing; how it looks is in report_page.html.
"""

import io
import json
import logging
import re
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cmbert.config.load import read_toml
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files import write_text
from cmbert.train.metrics import METRICS_FILE, read_metrics

logger = logging.getLogger(__name__)


COLUMNS: tuple[str, ...] = ("step", "tokens", "loss", "learning_rate", "mask_rate", "masked_tokens", "real_tokens")
COLUMNS += ("grad_norm", "step_seconds", "data_wait_seconds", "tokens_per_second", "fill_rate", "time")
RECIPE_KEYS: tuple[str, ...] = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.vocab_size")
RECIPE_KEYS += ("data.context_tokens", "train.rows_per_step", "schedule.lr_max", "schedule.lr_min")
RECIPE_KEYS += ("schedule.warmup_tokens", "mask.unit", "mask.start_rate", "mask.peak_rate", "mask.end_rate")
RECIPE_KEYS += ("train.deepspeed", "train.seed")
MAX_POINTS = 1500  # of one drawn curve; a million steps still make a page of some hundred kB (ours)
TICK_STEPS = [1, 2, 2.5, 5, 10]
WIDE, NARROW = (1054, 330), (516, 270)  # width and height of a drawing, CSS pixels; text is 12 in both
# Matplotlib draws in these stand-ins; the style sheet says what they are in light and in dark.
INK, FAINT, GRID, AXIS, CARD = "#010101", "#010102", "#010103", "#010104", "#010105"
STAGE_COLOURS = ("#020001", "#020002", "#020003", "#020004")
VARIABLES = {INK: "ink", FAINT: "ink-faint", GRID: "grid", AXIS: "axis", CARD: "card"}
VARIABLES |= {colour: f"stage-{number}" for number, colour in enumerate(STAGE_COLOURS, start=1)}


@dataclass(frozen=True)
class Stage:
    """One run directory as read; `start_tokens` is what the stages before it have seen."""

    name: str
    number: int
    start_tokens: int
    columns: dict[str, np.ndarray]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    evaluation: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one figure of every step, shape (steps,); tokens include those of earlier stages."""
        return self.columns[name] + (self.start_tokens if name == "tokens" else 0)

    @property
    def colour(self) -> str:
        """The stand-in for this stage's colour."""
        return STAGE_COLOURS[(self.number - 1) % len(STAGE_COLOURS)]

    def fact(self, key: str) -> str:
        """Return a value of the recipe by its dotted key, as text; a dash if it has none."""
        section, name = key.split(".")
        value = self.recipe.get(section, {}).get(name, "–")
        return f"{value:,}" if isinstance(value, int) else str(value)


Curve = Callable[[Stage], np.ndarray]


def write_report(run: Path, output: Path) -> None:
    """Write the page about `run`, a run directory or a folder of stages in the order of their names, to `output`.

    Raises CheckpointError when there is nothing to show or a file is malformed, ConfigError for a bad `output`.
    """
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the page to write, for example {output / 'report.html'}")
    stages = read_stages(run)
    summary = read_optional(run / "summary.json", dict)
    scored = next((stage for stage in reversed(stages) if stage.evaluation), stages[-1])
    score = scored.evaluation | {name: value for name, value in summary.items() if value is not None}
    phases = summary.get("seconds") or {}
    when = time.strftime("%d %B %Y", time.gmtime(stages[-1]["time"][-1]))
    count = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
    steps = sum(len(stage["step"]) for stage in stages)
    sections = [
        training_section(stages, score.get("unigram_loss")),
        position_section([stage for stage in stages if stage.evaluation.get("by_position")]),
        fill_mask_section(read_optional(run / "fill_mask.json", list)),
        phases_section(phases),
        f"<h2>What was run</h2>\n{facts_table(stages)}",
    ]
    template = resources.files("cmbert").joinpath("report_page.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=escape(run.resolve().name),
        subtitle=f"Masked-language-model pretraining · {count} · {steps:,} steps · last step on {when} (UTC)",
        figures=headline(stages, score, f"after {scored.name}", sum(phases.values())),
        sections="\n".join(filter(None, sections)),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    logger.info("report %s (%d kB)", output, len(page.encode()) // 1000)


def read_stages(run: Path) -> list[Stage]:
    """Read `run`, or its sub-directories if it is a folder of runs; those without a record are left out."""
    folders = [run] if (run / METRICS_FILE).is_file() else sorted(path.parent for path in run.glob(f"*/{METRICS_FILE}"))
    stages: list[Stage] = []
    for folder in folders:
        records = read_metrics(folder)
        if not records:
            continue
        if missing := [name for name in COLUMNS if any(name not in record for record in records)]:
            raise CheckpointError(f"{folder / METRICS_FILE}: a record lacks {missing[0]!r}; train this run again")
        columns = {name: np.array([record[name] for record in records], dtype=np.float64) for name in COLUMNS}
        recipe = read_toml(folder / "resolved.toml") if (folder / "resolved.toml").is_file() else {}
        environment, evaluation = (read_optional(folder / name, dict) for name in ("environment.json", "eval.json"))
        start = int(stages[-1]["tokens"][-1]) if stages else 0
        stages.append(Stage(folder.resolve().name, len(stages) + 1, start, columns, recipe, environment, evaluation))
    if not stages:
        raise CheckpointError(f"{run}: no {METRICS_FILE} with a step in it; train first: cmbert train RECIPE.toml")
    if not stages[-1].evaluation:
        stages[-1].evaluation.update(read_optional(run / "eval.json", dict))  # of the whole run: of its last stage
    return stages


def read_optional(path: Path, kind: type) -> Any:
    """Return the JSON value of a file, an empty one if there is no file. Raises CheckpointError if malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else kind()
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path}: not JSON ({error}); remove it or write it again") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: must hold a JSON {kind.__name__}; remove it or write it again")
    return value


def headline(stages: Sequence[Stage], score: dict[str, Any], scored: str, phase_seconds: float) -> str:
    """Return the row of figures at the top; what is not known is left out."""
    loss, unigram, accuracy = (score.get(name) for name in ("heldout_loss", "unigram_loss", "masked_accuracy"))
    ends = smooth(stages[-1]["loss"])[-1]
    train_seconds = sum(float((stage["step_seconds"] + stage["data_wait_seconds"]).sum()) for stage in stages)
    speed = float(np.median(np.concatenate([stage["tokens_per_second"] for stage in stages])))
    cards = []
    if loss is not None:
        cards.append(("Held-out loss", f"{loss:.3f}", "nats", f"per masked token, {scored}"))
    if unigram is not None:
        cards.append(("Unigram loss", f"{unigram:.3f}", "nats", "a guess without any context"))
    if loss is not None and unigram is not None:
        cards.append(("Gap", f"{unigram - loss:.3f}", "nats", "unigram minus held-out"))
    if accuracy is not None:
        cards.append(("Masked accuracy", f"{100 * accuracy:.1f}", "%", "held-out, first guess is right"))
    cards.append(("Training loss", f"{ends:.3f}", "nats", "at the end, smoothed"))
    cards.append(("Tokens seen", compact(stages[-1]["tokens"][-1]), "tokens", "positions of rows, all stages"))
    cards.append(("Speed", f"{speed:,.0f}", "tokens/s", "median step"))
    spent, unit = duration(phase_seconds or train_seconds)
    note = "{} {} of it in training steps".format(*duration(train_seconds)) if phase_seconds else "in training steps"
    cards.append(("Wall time", spent, unit, note))
    card = '<div class="card">{}<span class="value">{}<small>{}</small></span><span class="faint">{}</span></div>'
    return "\n".join(card.format(*map(escape, texts)) for texts in cards)


def training_section(stages: Sequence[Stage], unigram: float | None) -> str:
    """Return the curves over tokens seen, with what colours and lines mean."""
    keys = [
        f'<span><i style="background:var(--{VARIABLES[stage.colour]})"></i><b>{escape(stage.name)}</b> '
        f"context {stage.fact('data.context_tokens')} tokens · {len(stage['step']):,} steps · "
        f"{compact(stage.columns['tokens'][-1])} tokens</span>"
        for stage in stages
    ]
    scale = 10 ** np.floor(np.log10(max(stage["learning_rate"].max() for stage in stages) or 1))
    exponent = str(round(np.log10(scale))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    windows = " and ".join(dict.fromkeys(str(2 * half_window(len(stage["step"])) + 1) for stage in stages))
    smoothed = f"light: every step; line: mean of {windows} steps"
    charts = [
        chart("Learning rate", f"times 10{exponent}", stages, lambda s: s["learning_rate"] / scale),
        chart("Mask rate", "% of tokens; line: scheduled; light: of real tokens, as drawn", stages,
              lambda s: 100 * s["mask_rate"], lambda s: 100 * s["masked_tokens"] / s["real_tokens"]),
        chart("Speed", f"real tokens per second; {smoothed}", stages,
              lambda s: smooth(s["tokens_per_second"]), lambda s: s["tokens_per_second"]),
        chart("Gradient norm", f"before clipping; {smoothed}", stages,
              lambda s: smooth(s["grad_norm"]), lambda s: s["grad_norm"]),
    ]  # fmt: skip
    loss = "".join(draw(size, "loss", lambda axes: plot_loss(axes, stages, unigram)) for size in (WIDE, NARROW))
    title = f"Loss<span>nats per masked token; {smoothed}</span>"
    figure = f'<figure class="card"><figcaption>{title}</figcaption>{loss}</figure>'
    pairs = f'<div class="pair">{"".join(charts)}</div>'
    return f'<h2>Training</h2>\n<p class="keys">{"".join(keys)}</p>\n{figure}\n{pairs}'


def position_section(stages: Sequence[Stage]) -> str:
    """Return the held-out loss by position in the text, drawn and in figures; nothing if no stage has it."""
    if not stages:
        return ""
    scores = [{bucket["start"]: bucket for bucket in stage.evaluation["by_position"]} for stage in stages]
    longest = max(scores, key=len)  # the buckets of a shorter context begin at the same places
    rows = []
    for start, bucket in longest.items():
        found = [score.get(start) for score in scores]
        cells = (f"{b['loss']:.3f}  ({b['masked_tokens']:,})" if b else "–" for b in found)
        rows.append([f"{start:,} to {bucket['end'] - 1:,}", *cells])
    head = ["position, tokens", *(f"{stage.name}: nats (tokens)" for stage in stages)]
    drawing = draw(NARROW, "position", lambda axes: plot_positions(axes, stages))
    title = "Does more context help?<span>held-out loss, nats per masked token, by position in its document</span>"
    figure = f'<figure class="card"><figcaption>{title}</figcaption>{drawing}</figure>'
    return f'<h2>Held-out text</h2>\n<div class="pair">{figure}<div class="card">{table(head, rows)}</div></div>'


def fill_mask_section(results: Sequence[dict[str, Any]]) -> str:
    """Return the filled-in sentences; nothing if there are none."""
    rows = []
    for result in results:
        text = escape(result.get("text", "")).replace("[MASK]", "<mark>[MASK]</mark>")
        chip = '<span class="chip">{}<small>{:.0f} %</small></span>'
        guesses = [
            chip.format(escape(p.get("token", "")), 100 * p.get("score", 0)) for p in result.get("predictions", [])
        ]
        cells = (text, "".join(guesses), escape(result.get("filled", "")))
        rows.append("<tr>" + "".join(f'<td lang="zh-CN">{cell}</td>' for cell in cells) + "</tr>")
    head = "<thead><tr><th>sentence</th><th>what the model expects</th><th>filled in</th></tr></thead>"
    body = f'<div class="card"><table class="stack">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    return f"<h2>Fill in the mask</h2>\n{body}" if rows else ""


def phases_section(seconds: dict[str, float]) -> str:
    """Return a bar per phase; nothing if no phase was timed."""
    longest = max(seconds.values(), default=0) or 1
    bar = '<span>{}</span><i style="width:{:.1f}%"></i><b>{} {}</b>'
    bars = [bar.format(escape(name), 100 * spent / longest, *duration(spent)) for name, spent in seconds.items()]
    return f'<h2>Where the time went</h2>\n<div class="card bars">{"".join(bars)}</div>' if bars else ""


def facts_table(stages: Sequence[Stage]) -> str:
    """Return what each stage saw, its recipe and its software; host names and folders are left out."""
    seen: list[tuple[str, Callable[[Stage], str]]] = [
        ("steps", lambda s: f"{len(s['step']):,}"),
        ("rows", lambda s: f"{s.columns['tokens'][-1] / s.recipe['data']['context_tokens']:,.0f}" if s.recipe else "–"),
        ("tokens seen (positions of rows)", lambda s: f"{s.columns['tokens'][-1]:,.0f}"),
        ("real tokens (no padding)", lambda s: f"{s['real_tokens'].sum():,.0f}"),
        ("fill rate, mean", lambda s: f"{100 * s['fill_rate'].mean():.2f} %"),
        ("masked tokens", lambda s: f"{s['masked_tokens'].sum():,.0f}"),
        ("masked share of real tokens", lambda s: f"{100 * s['masked_tokens'].sum() / s['real_tokens'].sum():.2f} %"),
    ]
    rows = [[label, *map(value, stages)] for label, value in seen]
    rows += [[key, *(Path(stage.fact(key)).name for stage in stages)] for key in RECIPE_KEYS]
    rows.append(["git commit", *((stage.environment.get("git_commit") or "–")[:12] for stage in stages)])
    rows.append(["python", *(stage.environment.get("python", "–") for stage in stages)])
    versions = [stage.environment.get("versions", {}) for stage in stages]
    packages = [name for name in versions[-1] if any(found.get(name) for found in versions)]
    rows += [[name, *(found.get(name) or "–" for found in versions)] for name in packages]
    return f'<div class="card">{table(["", *(stage.name for stage in stages)], rows)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts, the first of each row naming it."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def compact(value: float) -> str:
    """Return a count as people say it: 640, 1.8k, 2.05M, 1.1T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # else 999,600 would be 1e+03k
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> tuple[str, str]:
    """Return seconds as a number and the unit that suits it."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.1f}", unit


def half_window(num_steps: int) -> int:
    """Steps to either side that smoothing averages over: an eightieth of the stage, at least 2 (ours)."""
    return max(2, num_steps // 80)


def smooth(values: np.ndarray) -> np.ndarray:
    """Average over neighbouring steps; symmetric at the start, where a curve is steep, and one-sided at the end."""
    index = np.arange(len(values))
    before = np.minimum(index, half_window(len(values)))
    first, last = index - before, np.minimum(index + before, len(values) - 1) + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last] - sums[first]) / (last - first)


def decimate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most MAX_POINTS points: the lowest and the highest of each stretch, so that no spike is lost."""
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

    drawing = draw(NARROW, title, paint)
    return f'<figure class="card"><figcaption>{title}<span>{note}</span></figcaption>{drawing}</figure>'


def plot_curves(axes: Axes, stages: Sequence[Stage], line: Curve, light: Curve | None) -> None:
    """Draw a light curve and the line that the eye should follow, stage after stage."""
    for stage in stages:
        if light:
            axes.plot(*decimate(stage["tokens"], light(stage)), color=stage.colour, alpha=0.35, linewidth=1)
        axes.plot(*decimate(stage["tokens"], line(stage)), color=stage.colour, linewidth=2)
        if stage.start_tokens:
            axes.axvline(stage.start_tokens, color=AXIS, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xlim(0, 1.01 * stages[-1]["tokens"][-1])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.set_xlabel("tokens seen", loc="right")


def plot_loss(axes: Axes, stages: Sequence[Stage], unigram: float | None) -> None:
    """Draw the training loss with the unigram loss and, where a stage was scored, its held-out loss."""
    plot_curves(axes, stages, lambda s: smooth(s["loss"]), lambda s: s["loss"])
    scored = [stage for stage in stages if "heldout_loss" in stage.evaluation]
    label = partial(axes.annotate, textcoords="offset points", ha="right")
    for line, stage in enumerate(reversed(scored)):
        loss, end = stage.evaluation["heldout_loss"], stage["tokens"][-1]
        axes.plot(end, loss, "D", color=stage.colour, markersize=9, mec=CARD, mew=2, clip_on=False, zorder=5)
        text = f"◆ held-out {loss:.2f}" + (f", after stage {stage.number}" if len(stages) > 1 else "")
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
        places, losses = [starts.index(b["start"]) for b in buckets], [b["loss"] for b in buckets]
        axes.plot(places, losses, color=stage.colour, linewidth=2, marker="o", markersize=7)
    axes.set_xticks(range(len(starts)), [f"{start:,}+" for start in starts])
    axes.set_xlim(-0.5, len(starts) - 0.5)
    axes.margins(y=0.15)
    axes.set_xlabel("position, tokens", loc="right")
