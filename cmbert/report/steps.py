"""The report's section on steps: where their time goes, and the loss of each source."""

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes

from cmbert.html.charts import (
    INK,
    MAX_POINTS,
    NARROW,
    PHASE_COLOURS,
    STAGE_COLOURS,
    VARIABLES,
    WIDE,
    Stage,
    compact,
    decimate,
    draw,
    half_window,
    smooth,
    token_axis,
)
from cmbert.html.page import figure

PHASE_COLUMNS = ("forward_seconds", "backward_seconds", "optimizer_seconds", "communication_seconds")
BANDS = ("waiting for data", "forward", "backward", "optimizer", "the rest")
MAX_SOURCES = 8  # drawn; beyond the colours there are, dashed
USUAL_SHARE = 95  # percent of the steps that the time axis must hold; the first ones compile


def steps_section(stages: Sequence[Stage]) -> str:
    """Return where the time of a step goes and the loss of each source; nothing for runs that recorded neither."""
    timed = [stage for stage in stages if np.isfinite(stage["forward_seconds"]).any()]
    mixed = [stage for stage in stages if np.isfinite(stage.source_loss).any()]
    sizes = (NARROW,) if timed and mixed else (WIDE, NARROW)
    figures = [time_figure(timed, stages, sizes)] if timed else []
    figures += [source_figure(mixed, stages, sizes)] if mixed else []
    if not figures:
        return ""
    body = f'<div class="pair">{"".join(figures)}</div>' if len(figures) > 1 else figures[0]
    return f"<h2>Step by step</h2>\n{body}"


def time_bands(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens seen and the seconds of each of BANDS, shapes (steps,) and (bands, steps), where timed."""
    parts = np.stack([stage[name] for name in ("data_wait_seconds", *PHASE_COLUMNS[:3])])
    rest = np.maximum(stage["step_seconds"] - parts[1:].sum(axis=0), 0)
    known = np.isfinite(rest)
    return stage["tokens"][known], np.vstack([parts, rest])[:, known]


def time_figure(timed: Sequence[Stage], stages: Sequence[Stage], sizes: Sequence[tuple[int, int]]) -> str:
    """Return the stacked seconds of a step over the tokens seen, communication as a line upon them."""
    bands = {stage.number: time_bands(stage) for stage in timed}
    smoothed = {number: np.stack([smooth(band) for band in seconds]) for number, (_, seconds) in bands.items()}
    top = 1.15 * max(np.percentile(seconds.sum(axis=0), USUAL_SHARE) for _, seconds in bands.values())
    scale, unit = (1000, "milliseconds") if top < 1 else (1, "seconds")
    communicating = [stage for stage in timed if np.nan_to_num(stage["communication_seconds"]).any()]

    def paint(axes: Axes) -> None:
        for number, (tokens, _) in bands.items():
            kept = np.unique(np.linspace(0, len(tokens) - 1, MAX_POINTS // 5).astype(np.int64))
            axes.stackplot(tokens[kept], scale * smoothed[number][:, kept], colors=PHASE_COLOURS, linewidth=0)
        for stage in communicating:
            known = np.isfinite(stage["communication_seconds"])
            line = scale * smooth(stage["communication_seconds"][known])
            axes.plot(*decimate(stage["tokens"][known], line), color=INK, linewidth=1.5, linestyle=(0, (3, 2)))
        token_axis(axes, stages)
        axes.set_ylim(0, scale * top)
        axes.yaxis.set_major_formatter(lambda value, _: compact(value))

    # The first step of a stage compiles and fills caches; the shares are of the others.
    totals = np.sum([seconds[:, min(1, seconds.shape[1] - 1) :].sum(axis=1) for _, seconds in bands.values()], axis=0)
    shares = 100 * totals / (totals.sum() or 1)
    keys = [
        f'<span><i class="band" style="background:var(--{VARIABLES[colour]})"></i>{name} {share:.0f} %</span>'
        for name, colour, share in zip(BANDS, PHASE_COLOURS, shares, strict=True)
    ]
    keys += ['<span><i class="dashed"></i>communication, within them</span>'] if communicating else []
    highest = max(seconds.sum(axis=0).max() for seconds in smoothed.values())
    note = f"{unit} per step on rank 0, smoothed" + ("; taller steps are cut off" if highest > top else "")
    return figure("Where a step's time goes", note, "".join(draw(size, "step time", paint) for size in sizes), keys)


def source_figure(mixed: Sequence[Stage], stages: Sequence[Stage], sizes: Sequence[tuple[int, int]]) -> str:
    """Return the smoothed training loss of each source, the MAX_SOURCES with the most tokens."""
    tokens: dict[str, int] = {}
    for stage in mixed:
        for name, seen in zip(stage.sources, stage.source_tokens, strict=True):
            tokens[name] = tokens.get(name, 0) + seen
    names = sorted(sorted(tokens, key=lambda name: -tokens[name])[:MAX_SOURCES], key=list(tokens).index)
    colours = {name: STAGE_COLOURS[i % len(STAGE_COLOURS)] for i, name in enumerate(names)}
    dashed = {name: i >= len(STAGE_COLOURS) for i, name in enumerate(names)}

    def paint(axes: Axes) -> None:
        for stage in mixed:
            for name, loss in zip(stage.sources, stage.source_loss.T, strict=True):
                if name in colours:
                    style = (0, (4, 2)) if dashed[name] else "-"
                    axes.plot(
                        *decimate(stage["tokens"], smooth(loss)), color=colours[name], linewidth=1.8, linestyle=style
                    )
        token_axis(axes, stages)

    keys = []
    for name in names:
        colour = f"var(--{VARIABLES[colours[name]]})"
        style = f'class="dashed" style="border-color:{colour}"' if dashed[name] else f'style="background:{colour}"'
        keys.append(f"<span><i {style}></i>{escape(name)}</span>")
    windows = " and ".join(dict.fromkeys(str(2 * half_window(len(stage["step"])) + 1) for stage in mixed))
    note = f"training, nats per masked token; mean of {windows} steps"
    note += f"; the {MAX_SOURCES} largest of {len(tokens)}" if len(tokens) > MAX_SOURCES else ""
    return figure("Loss of each source", note, "".join(draw(size, "source loss", paint) for size in sizes), keys)
