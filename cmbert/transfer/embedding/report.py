"""The report of embedding training: a table in Markdown and, over the number of pairs, a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmbert.evaluate.table import markdown_table
from cmbert.files.whole import write_bytes, write_text
from cmbert.html.charts import compact

PAPER_PEARSON, PAPER_SPEARMAN, PAPER_PAIRS = 0.505, 0.537, 5_000_000  # arXiv 2510.12285, SimCLUE's test
COLUMNS = ("pairs", "steps", "Pearson", "Spearman", "alignment", "cosine, label 1", "cosine, label 0", "seconds")


def table(results: Mapping[str, Any]) -> str:
    """Return the figures of results.json as Markdown."""
    evaluation = results["before"]
    lines = [
        f"# {results['settings']['model']['name']} on {results['settings']['files']['eval'][0]['path']}",
        "",
        f"{evaluation['pairs']:,} pairs, {100 * evaluation['label_1_share']:.1f} % of label 1; Pearson and Spearman of "
        "cosine and label; alignment: mean squared distance of label-1 pairs. Row 0 is the start, mean pooling.",
        "",
    ]
    rows = [_row(0, 0, evaluation, 0.0)]
    rows += [
        _row(run["pairs"], run["training"]["steps"], run["after"], run["training"]["seconds"])
        for run in results["runs"]
    ]
    return "\n".join([*lines, markdown_table(COLUMNS, rows)]) + "\n"


def _row(pairs: int, steps: int, score: Mapping[str, float], seconds: float) -> list[str]:
    figures = [score[key] for key in ("pearson", "spearman", "alignment", "mean_cosine_label_1", "mean_cosine_label_0")]
    return [f"{pairs:,}", f"{steps:,}", *(f"{figure:.4f}" for figure in figures), f"{seconds:,.1f}"]


def draw_curve(before: Mapping[str, float], runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw both correlations over the number of pairs, on a logarithmic axis, as a PNG."""
    from matplotlib.figure import Figure

    sizes = [run["pairs"] for run in runs]
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("spearman", "#1f5fa8"), ("pearson", "#c0582b")):
        values = [run["after"][name] for run in runs]
        axes.plot(sizes, values, "o-", color=colour, linewidth=2, label=f"{name.capitalize()}, trained")
        axes.axhline(before[name], color=colour, linewidth=1.2, linestyle=(0, (5, 4)))
        axes.annotate(
            f"{name.capitalize()} before, {before[name]:.3f}",
            (1, before[name]),
            (-4, 3),
            color=colour,
            ha="right",
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
        )
        for size, value in zip(sizes, values, strict=True):
            axes.annotate(
                f"{value:.3f}", (size, value), (0, 6), color=colour, ha="center", textcoords="offset points", fontsize=9
            )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [compact(size) for size in sizes])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.14)
    axes.set_xlabel("pairs trained on")
    axes.set_ylabel("correlation of cosine and label")
    axes.grid(axis="y", linewidth=0.6, color="#dddddd")
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.5))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    write_bytes(path, sink.getvalue())


def write_table(results: Mapping[str, Any], path: Path) -> None:
    """Write the table beside results.json."""
    write_text(path, table(results))
