"""The picture of the long-context check: loss against context, and by position in the longest segment."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from cmbert.errors import ConfigError
from cmbert.evaluate.long_context import Stress
from cmbert.files.whole import write_bytes

LINE, OTHER, MARK = "#1f5fa8", "#c8641e", "#777777"
INTERVAL_ERRORS = 1.96  # standard errors to either side: 95 % of a normal mean


def draw_stress(found: Stress, output: Path) -> None:
    """Write a PNG of two panels. Raises ConfigError for a name that does not end in .png."""
    check_plot(output)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_contexts(left, found)
    draw_positions(right, found)
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_ylabel("loss, nats per hidden token")
        axes.margins(y=0.12)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, sink.getvalue())


def check_plot(output: Path) -> None:
    """Raise ConfigError unless `output` names a PNG."""
    if output.suffix != ".png" or output.is_dir():
        raise ConfigError(f"--plot: {output} must be a file that ends in .png")


def draw_contexts(axes: Axes, found: Stress) -> None:
    """Draw the mean loss of every context with its interval, and the interval of its difference from the best shorter.

    The light band is the scatter of documents; the bars are of the paired difference, by which the rule decides.
    """
    contexts = [score.context_tokens for score in found.contexts]
    losses = [score.loss for score in found.contexts]
    spread = [INTERVAL_ERRORS * score.loss_error for score in found.contexts]
    paired = [INTERVAL_ERRORS * score.difference_error for score in found.contexts]
    lower, upper = ([loss + sign * width for loss, width in zip(losses, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(
        contexts, lower, upper, color=LINE, alpha=0.12, linewidth=0, label="95 % of the mean over documents"
    )
    axes.errorbar(
        contexts, losses, paired, color=LINE, marker="o", capsize=4, linewidth=2,
        label="loss; bars: 95 % of the difference from the best shorter context",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("context, tokens")
    axes.set_title(f"The same {found.hidden_tokens:,} hidden tokens of {found.documents} documents", loc="left")
    mark_lengths(axes, found)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=9)


def draw_positions(axes: Axes, found: Stress) -> None:
    """Draw the loss by position at the longest context, and of the same tokens at the best other one."""
    middles = [(place.start + place.end) / 2 for place in found.by_position]
    longest = [place.longest for place in found.by_position]
    spread = [INTERVAL_ERRORS * place.longest_error for place in found.by_position]
    lower, upper = ([loss + sign * width for loss, width in zip(longest, spread, strict=True)] for sign in (-1, 1))
    context = found.contexts[-1].context_tokens
    axes.fill_between(middles, lower, upper, color=LINE, alpha=0.12, linewidth=0)
    axes.plot(middles, longest, color=LINE, linewidth=2, label=f"one segment of {context:,} tokens (band: 95 %)")
    best = [place.best for place in found.by_position]
    axes.plot(middles, best, color=OTHER, linewidth=2, label=f"the same tokens in segments of {found.best_context:,}")
    axes.set_xlim(0, context)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xticks([context * part // 4 for part in range(5)])
    axes.set_xlabel("position in the document, tokens")
    axes.set_title(f"By position at {context:,}", loc="left")
    mark_lengths(axes, found)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=9)


def mark_lengths(axes: Axes, found: Stress) -> None:
    """Mark where the training's rows end and what the rotary embedding was planned for; one line if they agree."""
    names: dict[int, list[str]] = {}
    if found.trained_tokens is not None:
        names.setdefault(found.trained_tokens, []).append("trained")
    names.setdefault(found.max_length, []).append("max_length")
    for (length, name), dashes in zip(names.items(), ((4, 3), (1, 2)), strict=False):
        if length <= found.contexts[-1].context_tokens:
            label = f"{' = '.join(name)}: {length:,} tokens"
            axes.axvline(length, color=MARK, linewidth=1.4, linestyle=(0, dashes), label=label)
