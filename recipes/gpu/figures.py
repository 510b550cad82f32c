"""What `make gpu` measures: parts, figures, predictions and goals, each in one place; and the tables made of them.

A prediction is arithmetic made before any run on a card (docs/performance.md, "On a GPU"): a miss of over 20 % means
that the picture is wrong, and which part of it must be known before anything is optimised. Standard library alone.
"""

from dataclasses import dataclass

MISS_SHARE = 0.20  # of the prediction
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Part:
    """A script of this folder, run as a process of its own."""

    name: str
    """Of the script, and of its JSON file."""
    seconds: int
    """Its share of a run of nine minutes on an H100."""
    what: str


PARTS = (
    Part("card", 60, "imports, one fused step, one DeepSpeed step, what the card gives at best"),
    Part("correctness", 75, "attention conformance, optimizer, compiled against eager; warms the compile cache"),
    Part("training", 110, "training step of large at 1,024 and 8,192, eager and compiled; profile of one step"),
    Part("memory", 60, "peak memory of micro-batches of 11, 22 and 44 rows beside the plan's"),
    Part("restart", 75, "kill -9 in the middle of 600 steps, resume, beside an unbroken run"),
    Part("large_steps", 65, "large under DeepSpeed: synchronisations, phases, checkpoint"),
    Part("encoding", 75, "encoding at 512 and 8,192 beside transformers' ModernBERT"),
    Part("attention", 15, "attention alone, global and window, forward and backward"),
)


@dataclass(frozen=True)
class Figure:
    """One number of the report. `key` begins with the name of the measurement that gives it."""

    part: str
    key: str
    what: str
    unit: str
    predicted: float | str | None = None
    """Or the key of the figure that predicts it."""
    goal: str = ""


FIGURES = (
    Figure("card", "product_8192_tflops", "bf16 product of 8,192 x 8,192 x 8,192", "TFLOP/s"),
    Figure("card", "copy_device_gb_per_second", "copy within the device, read and written", "GB/s"),
    Figure("card", "copy_to_host_gb_per_second", "copy to pinned host memory", "GB/s"),
    Figure("correctness", "conformance_failed", "attention conformance: tests that fail", "tests", goal="0"),
    Figure("correctness", "optimizer_difference", "a step of the optimizers, GPU beside CPU", "relative"),
    Figure("correctness", "compiled_difference", "losses, compiled beside eager", "relative"),
    # Predictions for one H100, goals half of the peak on an H200; docs/performance.md has the arithmetic.
    Figure("training", "train_compiled_1024", "train large, rows of 1,024, compiled", "tokens/s",
           160e3, "214,000 (H200)"),
    Figure("training", "train_eager_1024", "train large, rows of 1,024, not compiled", "tokens/s", 120e3),
    Figure("training", "train_compiled_8192", "train large, rows of 8,192, compiled", "tokens/s",
           100e3, "154,000 (H200)"),
    Figure("training", "train_eager_8192", "train large, rows of 8,192, not compiled", "tokens/s"),
    Figure("training", "train_compiled_variable_1024", "train large, segments of 16 to 1,024, compiled", "tokens/s"),
    Figure("training", "train_compiled_variable_8192", "train large, segments of 16 to 8,192, compiled", "tokens/s"),
    Figure("training", "train_compiled_1024_mfu", "MFU of train large, 1,024, compiled", "of the peak"),
    Figure("training", "train_compiled_8192_mfu", "MFU of train large, 8,192, compiled", "of the peak"),
    Figure("training", "profile_compiled_launches", "kernels of one compiled step at 1,024", "launches"),
    Figure("training", "profile_compiled_idle_share", "device idle within that step", "of the step"),
    *(
        Figure("memory", f"memory_{rows}_rows", f"memory of large, ZeRO 1, micro-batch {rows} x 1,024", "GB",
               f"memory_{rows}_rows_plan")
        for rows in (11, 22, 44)
    ),
    Figure("restart", "restart_difference", "largest difference of a loss, resumed beside unbroken", "nats", goal="0"),
    Figure("restart", "restart_seconds", "from the start of the resuming process to its first step", "s"),
    Figure("large_steps", "steps_tokens_per_second", "train large under DeepSpeed, median step", "tokens/s"),
    Figure("large_steps", "steps_synchronisations", "host synchronisations of a step", "a step", goal="1 at most"),
    Figure("large_steps", "steps_checkpoint_stall", "checkpoint of large: training stands still", "s"),
    Figure("large_steps", "steps_checkpoint_write", "checkpoint of large: written in the background", "s"),
    Figure("large_steps", "load_seconds", "checkpoint of large: loaded", "s"),
    Figure("encoding", "encode_512", "encode with large, texts of 512, compiled", "tokens/s", 540e3, "600,000"),
    Figure("encoding", "encode_512_ratio", "texts of 512, beside transformers' best path", "times", goal="2 at least"),
    Figure("encoding", "encode_variable_512", "encode with large, texts to 512, compiled", "tokens/s"),
    Figure("encoding", "encode_variable_512_ratio", "texts to 512, beside transformers' best path", "times"),
    Figure("encoding", "encode_8192", "encode with large, texts of 8,192, compiled", "tokens/s", 350e3, "400,000"),
    Figure("encoding", "encode_8192_ratio", "texts of 8,192, beside transformers' best path", "times",
           goal="2 at least"),
    Figure("encoding", "encode_variable_8192", "encode with large, texts to 8,192, compiled", "tokens/s"),
    Figure("encoding", "encode_variable_8192_ratio", "texts to 8,192, beside transformers' best path", "times"),
    Figure("encoding", "encode_8192_memory", "memory of that beyond the weights, texts of 8,192", "GB"),
    *(
        Figure("attention", f"attention_{reach}_{context}_{way}",
               f"attention alone, {reach}, segments of {context:,}, {way}", "us a token")
        for reach, context in (("global", 1024), ("global", 8192), ("window", 8192))
        for way in ("forward", "backward")
    ),
)  # fmt: skip


def number(value: float) -> str:
    """Return a figure with the digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def prediction_of(figure: Figure, entry: dict) -> float | None:
    """Return what a figure was predicted to be, if anything."""
    if isinstance(figure.predicted, str):
        return entry.get("figures", {}).get(figure.predicted)
    return figure.predicted


def why_missing(figure: Figure, entry: dict | None) -> str:
    """Say why a figure is not there."""
    if entry is None:
        return "this part has not run"
    if any(figure.key.startswith(name) for name in entry["gpu_only"]):
        return "needs a GPU"
    reasons = [why for name, why in entry["missing"].items() if figure.key.startswith(name)]
    return reasons[0] if reasons else entry.get("reason") or "this part gave no such figure"


def lines_of(report: dict, parts: list[str], *, of_dry_run: bool) -> list[tuple[Figure, str, str]]:
    """Return (figure, measured or why not, predicted and how far off) of the given parts.

    of_dry_run: show the figures of a dry run, too, which say nothing about a card.
    """
    lines = []
    for figure in FIGURES:
        if figure.part not in parts:
            continue
        entry = report["parts"].get(figure.part)
        is_dry = entry is not None and entry["dry_run"]
        value = entry["figures"].get(figure.key) if entry else None
        predicted = prediction_of(figure, entry or {})
        beside = number(predicted) if predicted is not None and not (is_dry and of_dry_run) else ""
        if value is None or (is_dry and not of_dry_run):
            why = "a dry run on a CPU" if is_dry and not of_dry_run else why_missing(figure, entry)
            lines.append((figure, f"{NOT_MEASURED}: {why}", beside))
            continue
        if predicted is not None and not is_dry:
            off = value / predicted - 1
            beside += f" ({off:+.0%}{', a miss' if abs(off) > MISS_SHARE else ''})"
        lines.append((figure, number(value), beside))
    return lines


def summary(report: dict, parts: list[str]) -> str:
    """Return the table that ends a run."""
    rows = [
        (figure.what, measured, figure.unit, beside and f"predicted {beside}", figure.goal and f"goal {figure.goal}")
        for figure, measured, beside in lines_of(report, parts, of_dry_run=True)
    ]
    if not rows:
        return ""
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"  {what:<{width}}  {'  '.join(filter(None, rest))}" for what, *rest in rows)


def markdown(report: dict) -> str:
    """Return the table of docs/performance.md, with the cards that gave its figures beneath."""
    rows = ["| what | unit | measured | predicted | goal |", "|---|---|---|---|---|"]
    for figure, measured, beside in lines_of(report, [part.name for part in PARTS], of_dry_run=False):
        rows.append(f"| {figure.what} | {figure.unit} | {measured} | {beside} | {figure.goal} |")
    cards: dict[str, list[str]] = {}
    for part in PARTS:
        entry = report["parts"].get(part.name)
        if entry and not entry["dry_run"] and entry["figures"]:
            described = ", ".join(f"{value}" for value in entry["machine"].values())
            cards.setdefault(described, []).append(part.name)
    notes = [f"{', '.join(names)}: {described}." for described, names in cards.items()]
    return "\n".join([*rows, "", *notes]).rstrip()


def replace_table(text: str, table: str) -> str | None:
    """Return a document with `table` between the two marks; None if it does not have them, once and in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        return None
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"
