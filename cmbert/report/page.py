"""`cmbert report`: one self-contained HTML page about a run: headline figures, curves, samples, what was run.

Reads metrics.jsonl, resolved.toml and environment.json of each stage and, where they are, eval.json, fill_mask.json
and summary.json. First what is read, then the sections; cmbert/html/charts.py draws, page.html says how it looks.
"""

import logging
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cmbert.errors import ConfigError
from cmbert.files.names import real
from cmbert.html.charts import (
    NARROW,
    VARIABLES,
    WIDE,
    Stage,
    chart,
    compact,
    draw,
    half_window,
    plot_loss,
    plot_positions,
    power_of_ten,
    smooth,
)
from cmbert.html.page import bars, cards, figure, section, table, write_page
from cmbert.progress import duration
from cmbert.report.files import FilledMask, Summary, read_optional
from cmbert.report.score import score_of
from cmbert.report.stages import read_stages
from cmbert.report.steps import steps_section

logger = logging.getLogger(__name__)


LAST_SECOND = 253_402_300_800  # of the year 9999, since 1970
MAX_EVENTS = 20  # shown
RECIPE_KEYS: tuple[str, ...] = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.vocab_size")
RECIPE_KEYS += ("data.context_tokens", "train.rows_per_step", "schedule.lr_max", "schedule.lr_min")
RECIPE_KEYS += ("schedule.warmup_tokens", "mask.unit", "mask.start_rate", "mask.peak_rate", "mask.end_rate")
RECIPE_KEYS += ("train.deepspeed", "train.seed")


def write_report(run: Path, output: Path) -> None:
    """Write the page about `run`, a run directory or a folder of stages, to `output`.

    Raises CheckpointError when there is nothing to show or a file is malformed, ConfigError for a bad `output`.
    """
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the page to write, for example {output / 'report.html'}")
    stages = read_stages(run)
    line = [stage for stage in stages if not stage.is_side]
    summary = read_optional(run / "summary.json", Summary)
    found, scored = score_of(line)
    score = found | {name: value for name, value in summary.items() if value is not None}
    phases = summary.get("seconds") or {}
    when = utc(line[-1]["time"][-1], "%d %B %Y")
    count = f"{len(line)} stages" if len(line) > 1 else "one stage"
    if others := len(stages) - len(line):
        count += f", {others} other run{'s' * (others > 1)}"
    steps = sum(len(stage["step"]) for stage in line)
    sections = [
        training_section(stages, score.get("unigram_loss")),
        steps_section(line),
        position_section([stage for stage in stages if stage.evaluation.get("by_position")]),
        data_section(stages),
        events_section(stages),
        fill_mask_section(read_optional(run / "fill_mask.json", list[FilledMask])),
        phases_section(phases),
        section("What was run", facts_table(stages)),
    ]
    size = write_page(
        output,
        title=real(run).name,
        subtitle=f"Masked-language-model pretraining · {count} · {steps:,} steps · last step on {when} (UTC)",
        figures=headline(line, score, scored, sum(phases.values())),
        sections=sections,
    )
    logger.info("report written to %s (%d kB)", output, size // 1000)


def utc(seconds: float, how: str) -> str:
    """Return a time in UTC as `how` says, a dash for one that no calendar has."""
    return time.strftime(how, time.gmtime(seconds)) if 0 <= seconds < LAST_SECOND else "–"


def headline(stages: Sequence[Stage], score: dict[str, Any], scored: str, phase_seconds: float) -> str:
    """Return the row of figures at the top; what is not known is left out."""
    loss, unigram, accuracy = (score.get(name) for name in ("heldout_loss", "unigram_loss", "masked_accuracy"))
    ends = smooth(stages[-1]["loss"])[-1]
    train_seconds = sum(float((stage["step_seconds"] + stage["data_wait_seconds"]).sum()) for stage in stages)
    speed = float(np.median(np.concatenate([stage["tokens_per_second"] for stage in stages])))
    found = []
    if loss is not None:
        found.append(("Held-out loss", f"{loss:.3f}", "nats", f"per masked token, {scored}"))
    if unigram is not None:
        found.append(("Unigram loss", f"{unigram:.3f}", "nats", "a guess without any context"))
    if loss is not None and unigram is not None:
        found.append(("Gap", f"{unigram - loss:.3f}", "nats", "unigram minus held-out"))
    if accuracy is not None:
        found.append(("Masked accuracy", f"{100 * accuracy:.1f}", "%", "held-out, first guess is right"))
    ended = f"{ends:.3f}" if np.isfinite(ends) else "not finite"
    found.append(("Training loss", ended, "nats", "smoothed; a tenth of its words unmasked"))
    found.append(("Tokens seen", compact(stages[-1]["tokens"][-1]), "tokens", "positions of rows, all stages"))
    found.append(("Speed", f"{speed:,.0f}", "tokens/s", "median step"))
    mfu, memory = (np.concatenate([stage[name] for stage in stages]) for name in ("mfu", "peak_memory_bytes"))
    if np.isfinite(mfu).any():
        found.append(("MFU", f"{100 * np.nanmedian(mfu):.1f}", "%", "median step; of the dense bf16 peak"))
    if np.isfinite(memory).any():
        found.append(("Peak memory", f"{np.nanmax(memory) / 1e9:.2f}", "GB", "of a rank, the most of any"))
    spent, unit = duration(phase_seconds or train_seconds)
    note = "{} {} of it in training steps".format(*duration(train_seconds)) if phase_seconds else "in training steps"
    found.append(("Wall time", spent, unit, note))
    return cards(found)


def origin(stage: Stage) -> str:
    """Return where a branch, and any run beside the main line, comes from; nothing for another stage of the line."""
    branch = f"branch of {escape(stage.branch_of)} · " if stage.branch_of else ""
    if not stage.is_side:
        return branch
    if not stage.parent:
        return f"{branch}a run of its own, not in the sums · "
    return f"{branch}from {escape(stage.parent)} at {compact(stage.start_tokens)} tokens, not in the sums · "


def training_section(stages: Sequence[Stage], unigram: float | None) -> str:
    """Return the curves over tokens seen, with what colours and lines mean."""
    keys = [
        f'<span><i style="background:var(--{VARIABLES[stage.colour]})"></i><b>{escape(stage.name)}</b> {origin(stage)}'
        f"context {stage.fact('data.context_tokens')} tokens · {len(stage['step']):,} steps · "
        f"{compact(stage.columns['tokens'][-1])} tokens</span>"
        for stage in stages
    ]
    scale, power = power_of_ten(max(stage["learning_rate"].max() for stage in stages))
    windows = " and ".join(dict.fromkeys(str(2 * half_window(len(stage["step"])) + 1) for stage in stages))
    smoothed = f"light: every step; line: mean of {windows} steps"
    charts = [
        chart("Learning rate", f"times {power}", stages, lambda s: s["learning_rate"] / scale),
        chart("Mask rate", "% of the tokens that may be masked; line: scheduled; light: realised", stages,
              lambda s: 100 * s["mask_rate"], lambda s: 100 * s["realised_mask_rate"]),
        chart("Speed", f"real tokens per second; {smoothed}", stages,
              lambda s: smooth(s["tokens_per_second"]), lambda s: s["tokens_per_second"]),
        chart("Gradient norm", f"before clipping; {smoothed}", stages,
              lambda s: smooth(s["grad_norm"]), lambda s: s["grad_norm"]),
    ]  # fmt: skip
    loss = "".join(draw(size, "loss", lambda axes: plot_loss(axes, stages, unigram)) for size in (WIDE, NARROW))
    dots = "; dots: held-out" if any(np.isfinite(stage["heldout_loss"]).any() for stage in stages) else ""
    losses = figure("Loss", f"nats per masked token; {smoothed}{dots}", loss)
    pairs = f'<div class="pair">{"".join(charts)}</div>'
    return f'<h2>Training</h2>\n<p class="keys">{"".join(keys)}</p>\n{losses}\n{pairs}'


def position_section(stages: Sequence[Stage]) -> str:
    """Return the held-out loss by position in the text, drawn and in figures; nothing if no stage has it."""
    if not stages:
        return ""
    scores = [{bucket["start"]: bucket for bucket in stage.evaluation["by_position"]} for stage in stages]
    longest = max(scores, key=len)  # the buckets of a shorter context begin at the same places
    rows = []
    for start, bucket in longest.items():
        found = [score.get(start) for score in scores]
        cells = (f"{b['loss']:.3f}  ({b['masked_tokens']:,})" if b and b["loss"] is not None else "–" for b in found)
        rows.append([f"{start:,} to {bucket['end'] - 1:,}", *cells])
    head = ["position, tokens", *(f"{stage.name}: nats (tokens)" for stage in stages)]
    drawing = draw(NARROW, "position", lambda axes: plot_positions(axes, stages))
    note = "held-out loss, nats per masked token, by position in its document"
    curves = figure("Does more context help?", note, drawing)
    return f'<h2>Held-out text</h2>\n<div class="pair">{curves}<div class="card">{table(head, rows)}</div></div>'


def data_section(stages: Sequence[Stage]) -> str:
    """Return what the model saw: tokens by source, and the lengths of the units that masks are made of."""
    rows = []
    for stage in stages:
        total = sum(stage.source_tokens) or 1
        for name, tokens in zip(stage.sources, stage.source_tokens, strict=True):
            rows.append([stage.name, name, f"{tokens:,}", f"{100 * tokens / total:.2f} %"])
    units = np.sum([stage.unit_lengths for stage in stages if not stage.is_side], axis=0)
    shares = (100 * units / max(units.sum(), 1)).tolist()
    labels = [*map(str, range(1, len(units))), f"{len(units)} or more"]
    unit_bars = bars([(label, share, f"{share:.1f} %") for label, share in zip(labels, shares, strict=True)])
    sources_card = f'<div class="card">{table(["stage", "source", "tokens", "share"], rows)}</div>'
    units_card = figure("Maskable units", "by length in tokens; a sample of every step", unit_bars)
    return f'<h2>What it saw</h2>\n<div class="pair">{sources_card}{units_card}</div>'


def fill_mask_section(results: Sequence[dict[str, Any]]) -> str:
    """Return the filled-in sentences; nothing if there are none."""
    rows = []
    for result in results:
        text = escape(result.get("text", "")).replace("[MASK]", "<mark>[MASK]</mark>")
        chip = '<span class="chip">{}<small>{:.0f} %</small></span>'
        found = [(p.get("token", "").replace("\n", "⏎"), p.get("score", 0)) for p in result.get("predictions", [])]
        guesses = [chip.format(escape(token), 100 * score) for token, score in found]
        cells = (text, "".join(guesses), escape(result.get("filled", "")))
        rows.append("<tr>" + "".join(f'<td lang="zh-CN">{cell}</td>' for cell in cells) + "</tr>")
    head = "<thead><tr><th>sentence</th><th>what the model expects</th><th>filled in</th></tr></thead>"
    body = f'<table class="stack">{head}<tbody>{"".join(rows)}</tbody></table>'
    return section("Fill in the mask", body) if rows else ""


def phases_section(seconds: dict[str, float]) -> str:
    """Return a bar per phase; nothing if no phase was timed."""
    rows = [(name, spent, " ".join(duration(spent))) for name, spent in seconds.items()]
    return section("Where the time went", bars(rows)) if rows else ""


def events_section(stages: Sequence[Stage]) -> str:
    """Return the newest things that happened to the run: skips, rewinds, failed saves; nothing if nothing did."""
    found = [(stage.name, event) for stage in stages for event in stage.events]
    if not found:
        return ""
    rows = [
        (utc(event["time"], "%Y-%m-%d %H:%M"), name, f"{event['step']:,}", event["text"])
        for name, event in found[-MAX_EVENTS:]
    ]
    older = f"<p>The newest {MAX_EVENTS} of {len(found):,}.</p>" if len(found) > MAX_EVENTS else ""
    return section("What happened", older + table(["UTC", "stage", "step", "event"], rows))


def facts_table(stages: Sequence[Stage]) -> str:
    """Return what each stage saw, its recipe and its software; host names and folders are left out."""
    seen: list[tuple[str, Callable[[Stage], str]]] = [
        ("steps", lambda s: f"{len(s['step']):,}"),
        ("rows", lambda s: f"{s.columns['tokens'][-1] / s.context:,.0f}" if s.context else "–"),
        ("tokens seen (positions of rows)", lambda s: f"{s.columns['tokens'][-1]:,.0f}"),
        ("real tokens (no padding)", lambda s: f"{s['real_tokens'].sum():,.0f}"),
        ("fill rate, mean", lambda s: f"{100 * s['fill_rate'].mean():.2f} %"),
        ("waiting for data, mean", lambda s: f"{1000 * s['data_wait_seconds'].mean():.2f} ms a step"),
        ("skipped rows", lambda s: f"{s['skipped_rows'][-1]:,.0f}"),
        ("masked tokens", lambda s: f"{s['masked_tokens'].sum():,.0f}"),
        ("masked rate, mean of steps", lambda s: f"{100 * s['realised_mask_rate'].mean():.2f} %"),
    ]
    rows = [[label, *map(value, stages)] for label, value in seen]
    rows += [[key, *(Path(stage.fact(key)).name for stage in stages)] for key in RECIPE_KEYS]
    rows.append(["git commit", *((stage.environment.get("git_commit") or "–")[:9] for stage in stages)])
    rows.append(["python", *(stage.environment.get("python", "–") for stage in stages)])
    versions = [stage.environment.get("versions", {}) for stage in stages]
    packages = [name for name in versions[-1] if any(found.get(name) for found in versions)]
    rows += [[name, *(found.get(name) or "–" for found in versions)] for name in packages]
    return table(["", *(stage.name for stage in stages)], rows, "facts")
