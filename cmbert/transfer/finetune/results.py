"""The table of all results under an output folder, as Markdown and HTML, beside published rows.

Every column is one split of one task: dev, test and the leaderboard's hidden test never share one.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbert.evaluate.table import markdown_table
from cmbert.files.json_types import read_record
from cmbert.files.whole import write_text
from cmbert.html.page import section, table, write_page
from cmbert.transfer.finetune.curves import curves_markdown, curves_section

RESULT_KEYS = (  # what the tables show
    *("task", "model", "scores", "splits", "setting", "grid", "max_length", "texts_cut", "train_examples"),
    *("hardware", "seconds"),
)
MAJORITY = "majority class"
LEADERBOARD = "leaderboard test"
PUBLISHED = {
    "Chinese ModernBERT, published": {
        "afqmc": 73.87,
        "tnews": 56.90,
        "iflytek": 60.15,
        "cmnli": 83.96,
        "cluewsc2020": 52.10,
        "csl": 86.20,
        "ocnli": 79.10,
        "c3": 82.65,
    },
    "RoBERTa-wwm-large, published": {
        "afqmc": 76.55,
        "tnews": 58.61,
        "iflytek": 62.98,
        "cmnli": 82.12,
        "cluewsc2020": 74.60,
        "csl": 82.13,
        "ocnli": 78.20,
        "c3": 73.82,
    },
}
"""Accuracy, percent, of full CLUE; likely on the leaderboard's hidden test, so they get a column of their own."""
FULL_TRAIN = {  # training examples of each task in CLUE, which published rows learned from (arXiv 2004.05986, table 2)
    "afqmc": 34_300,
    "tnews": 53_300,
    "iflytek": 12_100,
    "cmnli": 391_700,
    "cluewsc2020": 1_200,
    "csl": 20_000,
    "ocnli": 50_000,
    "c3": 11_800,
}
FULL_SHARE = 0.9  # of them: less is a sample, and no published row stands beside it (ours)
FEW_SHOT_EXAMPLES = 1_000  # fewer to learn from is few-shot (ours): FewCLUE has hundreds, CLUE's smallest task 1,244
NOTES = (
    "Percent. ± is half the 95 % interval of Student's t over the seeds (their number in brackets).",
    "A model's setting is the one that did best on dev, so dev figures flatter a little; the test split chose nothing.",
    "Models are compared fairly only if all were tuned over the same settings: see the column “settings tried”.",
    "“no labels”: the answers wait beside the result, in the form that the leaderboard takes.",
)
PUBLISHED_NOTE = "Published: both in one table that third parties give; they do not name the split."
FEW_SHOT_NOTE = f"Few-shot: learned from fewer than {FEW_SHOT_EXAMPLES:,} examples; no published row compares with it."


def read_results(output: Path) -> list[dict[str, Any]]:
    """Return every result.json under `output`/TASK/MODEL/, ordered by task and model."""
    paths = sorted(output.glob("*/*/result.json"))
    return [read_record(path, *RESULT_KEYS) for path in paths]


def write_results(output: Path) -> None:
    """Write results.md and results.html about everything under `output`."""
    results = read_results(output)
    few = [result for result in results if is_few_shot(result)]
    groups = {"Scores": [result for result in results if result not in few], "Few-shot": few}
    scores = {name: score_table(group) for name, group in groups.items() if group}
    settings_head, settings_rows = settings_table(results)
    parts = ["# Fine-tuning results"]
    for name, (head, rows) in scores.items():
        parts += [f"## {name}", markdown_table(head, rows), ""]
    is_published = any(row[0] in PUBLISHED for _, rows in scores.values() for row in rows)
    notes = [*NOTES, *[PUBLISHED_NOTE] * is_published, *[FEW_SHOT_NOTE] * bool(few)]
    parts += [f"- {note}" for note in notes]
    parts += ["", "## How each was trained", markdown_table(settings_head, settings_rows)]
    parts += curves_markdown(results)
    write_text(output / "results.md", "\n".join(parts) + "\n")
    turned = {name: list(zip(["split", *head[1:]], *rows, strict=True)) for name, (head, rows) in scores.items()}
    shown = "".join(f'<p class="faint">{note}</p>' for note in notes)
    tasks = sorted({result["task"] for result in results})
    write_page(
        output / "results.html",
        title="Fine-tuning results",
        subtitle=f"{len({result['model'] for result in results})} models · {', '.join(tasks)}",
        sections=[  # scores: a row per split, for a page has more room below than beside
            *(section(name, table(lines[0], lines[1:], "numbers")) for name, lines in turned.items()),
            shown,
            section("How each was trained", table(settings_head, settings_rows, "numbers")),
            curves_section(results),
        ],
    )


def is_few_shot(result: dict[str, Any]) -> bool:
    """Return whether a result learned from a few examples: it stands in a table of its own."""
    return bool(result["train_examples"] < FEW_SHOT_EXAMPLES)


def score_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of scores: a row per model, the majority class, the published rows."""
    cells: dict[tuple[str, str], str] = {}  # (row, column) -> text
    columns: dict[str, None] = {}
    tasks = list(dict.fromkeys(result["task"] for result in results))
    for task in tasks:
        for result in (result for result in results if result["task"] == task):
            for (split, found), name in itertools.product(result["splits"].items(), result["scores"]):
                column = f"{task} {split}, {name.replace('_', ' ')}" if name in found else f"{task} {split}"
                columns[column] = None
                cells[result["model"], column] = spell(found.get(name))
                if "majority_share" in found and name == "accuracy":
                    cells[MAJORITY, column] = f"{found['majority_share']:.2f}"
        is_full = all(r["train_examples"] >= FULL_SHARE * FULL_TRAIN.get(task, 0) for r in results if r["task"] == task)
        for model, scores in PUBLISHED.items():
            if task in scores and is_full:
                column = f"{task} {LEADERBOARD}, accuracy"
                columns[column] = None
                cells[model, column] = f"{scores[task]:.2f}"
    names = [*dict.fromkeys(result["model"] for result in results), MAJORITY, *PUBLISHED]
    names = [name for name in names if any(row == name for row, _ in cells)]
    return ["model", *columns], [[name, *(cells.get((name, column), "") for column in columns)] for name in names]


def spell(found: dict[str, Any] | None) -> str:
    """Return an interval for people; without one the split has no labels."""
    if found is None:
        return "no labels"
    text = f"{found['mean']:.2f}"
    if found["half_width"] is not None:
        text += f" ± {found['half_width']:.2f}"
    return f"{text} ({len(found['values'])})"


def settings_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of how each result came about."""
    head = ["task", "model", "learning rate", "batch", "epochs", "settings tried", "length", "texts cut"]
    head += ["train / dev / test examples", "hardware", "minutes"]
    rows = []
    for result in results:
        setting, splits = result["setting"], result["splits"]
        sizes = [result["train_examples"], *(splits.get(name, {}).get("examples", 0) for name in ("dev", "test"))]
        row = [result["task"], result["model"], f"{setting['learning_rate']:g}", setting["batch_size"]]
        row += [setting["epochs"], len(result["grid"]), result["max_length"], f"{result['texts_cut']:,}"]
        row += [" / ".join(f"{size:,}" for size in sizes), result["hardware"], f"{result['seconds'] / 60:.1f}"]
        rows.append([str(value) for value in row])
    return head, rows
