"""The runs of a folder as stages: each stands where the run that it came from had come to."""

import os.path
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from cmbert.checkpoint.files import CHECKPOINTS
from cmbert.errors import CheckpointError
from cmbert.files.names import real
from cmbert.html.charts import Stage
from cmbert.report.files import COLUMNS, LISTS, Evaluation, read_optional, read_stage
from cmbert.runs.metrics import METRICS_FILE, read_metrics


def read_stages(run: Path) -> list[Stage]:
    """Read `run`, or the runs in it if it is a folder of runs; those without a record are left out.

    The main line comes first, from its start to its end: of all chains of runs the one that saw most tokens. Runs
    beside it are side branches: drawn from where they left their parent, summed into nothing. Raises CheckpointError
    when there is nothing to show or a file is malformed.
    """
    folders = [run] if (run / METRICS_FILE).is_file() else sorted(path.parent for path in run.glob(f"*/{METRICS_FILE}"))
    read = {
        real(folder): read_stage(folder, records)
        for folder in folders
        if (records := read_metrics(folder, needed=(*COLUMNS, *LISTS)))
    }
    if not read:
        raise CheckpointError(f"{run}: no {METRICS_FILE} with a step in it; train first: `cmbert train RECIPE.toml`")
    parents = _parents(read)
    stages = {folder: _place(folder, read, parents) for folder in read}
    last = max(stages, key=lambda folder: (stages[folder]["tokens"][-1], stages[folder]["time"][-1]))
    line = [*reversed(_ancestors(last, parents)), last]
    others = [folder for folder in stages if folder not in line]
    others.sort(key=lambda folder: (parents[folder] is None, stages[folder].start_tokens, folder))
    found = [replace(stages[folder], number=number) for number, folder in enumerate([*line, *others], start=1)]
    found[len(line) :] = [replace(stage, is_side=True) for stage in found[len(line) :]]
    if not found[len(line) - 1].evaluation:  # of all: of the last stage
        found[len(line) - 1].evaluation.update(read_optional(run / "eval.json", Evaluation))
    return found


def _parents(read: dict[Path, Stage]) -> dict[Path, Path | None]:
    """Return the run that each started from, None where that is not among them, or nobody says it."""
    parents: dict[Path, Path | None] = {}
    for folder, stage in read.items():
        named = _run_named(stage)
        # A folder of runs may have been moved, or trained from another working directory: its names still hold.
        here = None if named is None else real(named) if os.path.exists(named) else folder.parent / named.name
        parents[folder] = here if here in read and here != folder else None
    circles = [folder for folder in parents if folder in _ancestors(folder, parents)]
    return parents | dict.fromkeys(circles)


def _run_named(stage: Stage) -> Path | None:
    """Return the run directory of a branch's parent, or that train.init_from names, itself or by a checkpoint."""
    if stage.branch_of:
        return Path(stage.branch_of.rpartition("@")[0])
    init_from = stage.recipe.get("train", {}).get("init_from")
    if not init_from:
        return None
    path = Path(init_from)
    return path.parent.parent if path.parent.name == CHECKPOINTS else path


def _ancestors(folder: Path, parents: dict[Path, Path | None]) -> list[Path]:
    """Return what a run came from, nearest first; a circle is gone round once."""
    found: list[Path] = []
    parent = parents[folder]
    while parent is not None and parent not in found:
        found.append(parent)
        parent = parents[parent]
    return found


def _place(folder: Path, read: dict[Path, Stage], parents: dict[Path, Path | None]) -> Stage:
    """Return a stage with the tokens that were seen before it and the name of the run they were seen in."""
    line = [folder, *_ancestors(folder, parents)]
    start = sum(_tokens_at(read[parent], read[child]) for child, parent in pairwise(line))
    start += read[line[-1]].branch_tokens  # of a parent that is not shown
    return replace(read[folder], start_tokens=start, parent=read[line[1]].name if line[1:] else "")


def _tokens_at(parent: Stage, child: Stage) -> int:
    """Return the tokens of `parent` in the weights that `child` started from: a checkpoint's, else all."""
    if child.branch_of:
        return child.branch_tokens - parent.branch_tokens
    name = Path(child.recipe["train"]["init_from"]).name
    tokens, steps = parent.columns["tokens"], parent.columns["step"]
    if name.startswith("step_") and name[5:].isdigit():
        tokens = tokens[steps < int(name[5:])]  # step_000000010 is what ten steps left, 0 to 9
    return int(tokens[-1]) if len(tokens) else 0
