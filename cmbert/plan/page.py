"""A plan drawn on one HTML page: schedules, memory, more GPUs, failures."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from cmbert.errors import ConfigError
from cmbert.html.charts import (
    AXIS,
    CARD,
    INK,
    NARROW,
    PHASE_COLOURS,
    STAGE_COLOURS,
    VARIABLES,
    compact,
    draw,
    power_of_ten,
    token_ticks,
)
from cmbert.html.page import cards, figure, table, write_page
from cmbert.plan.describe import MEMORY_PARTS, gigabytes, short
from cmbert.plan.memory import usable_bytes
from cmbert.plan.plan import Plan
from cmbert.plan.short import describe_memory, describe_plan, describe_processes, describe_time
from cmbert.progress import duration

MEMORY_COLOURS = (*PHASE_COLOURS[:4], STAGE_COLOURS[3])  # of MEMORY_PARTS
DASHED = (0, (5, 4))


def write_plan_page(plan: Plan, output: Path) -> None:
    """Write the page about `plan` to `output`. Raises ConfigError when that is a folder."""
    if output.is_dir():
        raise ConfigError(f"--page: {output} is a folder; name the page to write, for example {output / 'plan.html'}")
    sections = [
        f'<h2>Schedule</h2>\n<div class="pair">{_rate_figure(plan)}{_mask_figure(plan)}</div>'
        f'<div class="pair">{_batch_figure(plan)}{"" if plan.is_small else _memory_figure(plan)}</div>',
        f'<h2>More GPUs</h2>\n<div class="pair">{_time_figure(plan)}{_efficiency_figure(plan)}</div>'
        f'<p class="soft">{escape(plan.scaling.limit)}.</p>'
        if plan.scaling.points and not plan.is_small
        else "",
        "" if plan.is_small else _failures(plan),
        f'<h2>In figures</h2>\n<div class="card scroll"><pre class="faint">{escape(describe_plan(plan))}</pre></div>',
    ]
    write_page(
        output,
        title=f"Plan of {Path(plan.run_directory).name}",
        subtitle=_subtitle(plan),
        figures=_headline(plan),
        sections=sections,
    )


def _subtitle(plan: Plan) -> str:
    place = describe_processes(plan) if plan.is_small else f"{plan.num_gpus} GPUs"
    said = "" if plan.is_small else "nothing here is measured on a GPU: "
    rests = f"{said}docs/scale.md says what each figure rests on"
    return f"{escape(plan.run_directory)} on {escape(place)} · context {plan.context_tokens:,} · {rests}"


def _small_headline(plan: Plan) -> str:
    measured, (memory, source) = plan.measured, describe_memory(plan)
    epochs = [source.epochs for source in plan.sources if source.epochs is not None]
    found = [
        ("Parameters", compact(plan.parameters.total), "", f"{plan.parameters.embedding_share:.1%} of them embeddings"),
        ("Tokens", compact(plan.total_tokens), "", f"{plan.num_steps:,} steps of {compact(plan.step_tokens)}"),
        ("Time", *(duration(3600 * measured.hours) if measured else ("?", "")), describe_time(plan)),
        ("Memory", *gigabytes(memory).split(), f"a process, {source}"),
        ("Checkpoints", *gigabytes(plan.checkpoints_bytes).split(), f"{gigabytes(plan.checkpoint_bytes)} each"),
        ("Epochs", f"{max(epochs):.1f}" if epochs else "?", "", "the most of a source" if epochs else "no shards yet"),
    ]
    return cards(found)


def _headline(plan: Plan) -> str:
    if plan.is_small:
        return _small_headline(plan)
    assumed, own = plan.assumptions, plan.memory[plan.zero_stage - 1]
    found = [
        ("Parameters", compact(plan.parameters.total), "", f"{plan.parameters.embedding_share:.1%} of them embeddings"),
        ("Tokens", compact(plan.total_tokens), "", f"{plan.num_steps:,} steps of {compact(plan.step_tokens)}"),
        ("Time", short(plan.hours), "hours", f"on {plan.num_gpus} GPUs at an assumed {assumed.mfu:.0%} of the peak"),
        ("GPU-hours", short(plan.hours * plan.num_gpus), "", f"{plan.training_flops:.3g} FLOP"),
        (
            "Memory",
            f"{own.total_bytes / 1e9:.1f}",
            "GB",
            f"per GPU, ZeRO {own.zero_stage}, in the {own.moment}",
        ),
        ("Shards", *gigabytes(plan.data.shards_bytes).split(), "" if plan.data.shards_measured else "estimated"),
        (
            "Preprocess",
            short(plan.data.preprocess_core_hours),
            "core-hours",
            gigabytes(plan.data.text_bytes) + " of text",
        ),
        (
            "Clean",
            short(plan.data.clean.core_hours),
            "core-hours",
            gigabytes(plan.data.clean.raw_bytes) + " of raw text, assumed",
        ),
    ]
    if plan.failures.lost_times:
        best = plan.failures.lost_times[0]
        note = f"loses {best.lost_share:.2%} of the time"
        found.append(("Best checkpoint interval", *duration(best.interval_seconds), note))
    return cards(found)


def _figure(title: str, note: str, paint: Callable[[Axes], None], keys: Sequence[str] = ()) -> str:
    return figure(title, note, draw(NARROW, title, paint), keys)


def _keys(names: Sequence[str], colours: Sequence[str]) -> list[str]:
    return [
        f'<span><i class="band" style="background:var(--{VARIABLES[colour]})"></i>{name}</span>'
        for name, colour in zip(names, colours, strict=True)
    ]


def _over_tokens(axes: Axes, tokens: Sequence[float], values: Sequence[float]) -> None:
    axes.plot(tokens, values, color=STAGE_COLOURS[0], linewidth=2)
    axes.set_ylim(bottom=0, top=1.08 * max(values))
    axes.set_xlim(0, 1.01 * tokens[-1])
    token_ticks(axes)


def _rate_figure(plan: Plan) -> str:
    tokens, rates = [p.tokens for p in plan.schedule], [p.learning_rate for p in plan.schedule]
    scale, power = power_of_ten(max(rates))
    scaled = [rate / scale for rate in rates]
    return _figure("Learning rate", f"times {power}", lambda axes: _over_tokens(axes, tokens, scaled))


def _mask_figure(plan: Plan) -> str:
    tokens, rates = [p.tokens for p in plan.schedule], [100 * p.mask_rate for p in plan.schedule]
    return _figure("Mask rate", "% of the tokens that may be masked", lambda axes: _over_tokens(axes, tokens, rates))


def _batch_figure(plan: Plan) -> str:
    tokens: list[int] = []
    rows: list[int] = []
    for _, first, size in plan.batch_ramp:
        tokens += [first, first]
        rows += [rows[-1] if rows else size, size]
    tokens, rows = [*tokens, plan.total_tokens], [*rows, rows[-1]]
    return _figure("Batch", "rows in a step", lambda axes: _over_tokens(axes, tokens, rows))


def _memory_figure(plan: Plan) -> str:
    usable = usable_bytes(plan.assumptions) / 1e9

    def paint(axes: Axes) -> None:
        for place, memory in enumerate(reversed(plan.memory)):
            left = 0.0
            for part, colour in zip(MEMORY_PARTS, MEMORY_COLOURS, strict=True):
                size = getattr(memory, f"{part}_bytes") / 1e9
                axes.barh(place, size, left=left, color=colour, height=0.55)
                left += size
            axes.annotate(f"{left:.1f}", (left, place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(plan.memory)), [str(m.zero_stage) for m in reversed(plan.memory)])
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", linewidth=1)
        most = max(memory.total_bytes for memory in plan.memory) / 1e9
        axes.set_xlim(0, 1.15 * most)
        axes.set_xlabel("GB", loc="right")

    note = f"per GPU at the fullest moment of a step; {usable:.0f} GB may be filled"
    return _figure("Memory by ZeRO stage", note, paint, _keys(MEMORY_PARTS, MEMORY_COLOURS))


def _gpu_axis(axes: Axes, plan: Plan) -> None:
    counts = [point.num_gpus for point in plan.scaling.points]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("GPUs", loc="right")


def _time_figure(plan: Plan) -> str:
    points = plan.scaling.points

    def paint(axes: Axes) -> None:
        counts = [point.num_gpus for point in points]
        for name, colour in (("compute_seconds", STAGE_COLOURS[0]), ("communication_seconds", STAGE_COLOURS[1])):
            axes.plot(counts, [getattr(p, name) for p in points], "o-", color=colour, mec=CARD, linewidth=2)
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _gpu_axis(axes, plan)

    keys = _keys(("computation", "communication"), STAGE_COLOURS[:2])
    return _figure("Seconds of a step", "by number of GPUs; both axes logarithmic", paint, keys)


def _efficiency_figure(plan: Plan) -> str:
    points = plan.scaling.points

    def paint(axes: Axes) -> None:
        counts, shares = [p.num_gpus for p in points], [100 * p.efficiency for p in points]
        axes.plot(counts, shares, "o-", color=STAGE_COLOURS[0], mec=CARD, linewidth=2)
        for number, (point, share) in enumerate(zip(points, shares, strict=True)):
            label = f"{short(point.hours)} h"
            place = (0, -32 if number % 2 else 9)  # neighbours in turn: both have room
            axes.annotate(label, (point.num_gpus, share), place, textcoords="offset points", ha="center")
        axes.axhline(90, color=INK, linewidth=1.2, linestyle=DASHED)
        axes.set_ylim(0, 119)  # room for the labels above the first points
        axes.yaxis.set_major_locator(FixedLocator(range(0, 101, 20)))
        axes.margins(x=0.08)
        _gpu_axis(axes, plan)

    first = points[0].num_gpus
    return _figure("Efficiency", f"% of the work of {first} GPUs, each; hours of the stage; dashed: 90 %", paint)


def _failures(plan: Plan) -> str:
    if plan.failures.needless:
        return f'<h2>Failures</h2>\n<p class="soft">{escape(plan.failures.needless)}.</p>'
    pair = f'{_failure_figure(plan)}<div class="card">{_lost_time_table(plan)}</div>'
    return f'<h2>Failures</h2>\n<div class="pair">{pair}</div>'


def _failure_figure(plan: Plan) -> str:
    failures = plan.failures

    def paint(axes: Axes) -> None:
        intervals, shares = np.array(failures.curve).T
        axes.plot(intervals / 60, 100 * shares, color=STAGE_COLOURS[0], linewidth=2)
        for lost, colour in zip(failures.lost_times, STAGE_COLOURS, strict=False):
            place = (lost.interval_seconds / 60, 100 * lost.lost_share)
            axes.plot(*place, "o", color=colour, markersize=9, mec=CARD, mew=2, zorder=5)
        axes.axvline(failures.best_interval_seconds / 60, color=AXIS, linewidth=1, linestyle=DASHED)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes of training between checkpoints", loc="right")

    names = [lost.name.replace("_", " ") for lost in failures.lost_times]
    note = f"% of the stage's time; one failure in {short(failures.job_mtbf_hours)} hours"
    return _figure("Time lost by checkpoint interval", note, paint, _keys(names, STAGE_COLOURS[: len(names)]))


def _lost_time_table(plan: Plan) -> str:
    rows = [
        [
            lost.name.replace("_", " "),
            f"{lost.interval_steps:,} steps, {' '.join(duration(lost.interval_seconds))}",
            f"{lost.lost_share:.2%}",
            f"{short(lost.lost_hours)}",
        ]
        for lost in plan.failures.lost_times
    ]
    return table(["checkpoints", "every", "lost", "hours"], rows)
