"""How much is held out: the share that a configuration states, or enough documents to compare models by."""

from collections.abc import Sequence
from typing import Any

from data_tools.clean.config import LEAST_SHARE, MOST_SHARE, WANTED_HELD_OUT, CleanConfig
from data_tools.defaults import FEWEST_HELD_OUT
from data_tools.input.readers import DocumentReader
from data_tools.input.tasks import plan_tasks
from data_tools.storage.files import InputFile

LOOKED_AT_BYTES = 64_000_000  # of input that are read to estimate its documents; a second
SPARE = 1.2  # times what is needed: some of what is held out goes as duplicates or by the rules


def share_in_force(config: CleanConfig, files: Sequence[InputFile]) -> float:
    """Return the share that is stated, or by rule from about how many documents `files` hold. Raises InputError."""
    if config.heldout_share:
        return config.heldout_share
    documents = max(documents_about(config, files), 1)
    return min(MOST_SHARE, max(LEAST_SHARE, WANTED_HELD_OUT / documents))


def documents_about(config: CleanConfig, files: Sequence[InputFile]) -> int:
    """Return how many documents `files` hold: counted, or estimated from evenly spread tasks where they are large."""
    tasks = plan_tasks(files, config.txt_document)
    looked_at = tasks[:: max(1, sum(task.num_bytes for task in tasks) // LOOKED_AT_BYTES)]
    ranges = [span for task in looked_at for span in task.ranges]
    count = sum(1 for _ in DocumentReader(ranges, **{**config.reading(), "on_bad_line": "skip"}))
    return count * sum(task.num_bytes for task in tasks) // max(sum(task.num_bytes for task in looked_at), 1)


def few_held_out(report: dict[str, Any]) -> str:
    """Return what to say of a held-out share with so few documents that two models can hardly be told apart by it."""
    only_held_out, share = report["settings"].get("only"), report["heldout_share"]
    held_out = sum(by["documents"] for by in report["kept"].values()) if only_held_out else report["held_out"]
    if held_out >= FEWEST_HELD_OUT:
        return ""
    needed = share * FEWEST_HELD_OUT / max(held_out, 1) * SPARE
    remedy = f"write heldout_share = {needed:.2g} into a --config file, and" if needed <= 0.5 else "give more text and"
    return (
        f"only {held_out:,} documents are held out (a share of {share:.2g}): fewer than {FEWEST_HELD_OUT}, unless they "
        f"are long, can hardly tell two models apart; {remedy} name other folders"
    )


def none_held_out(report: dict[str, Any]) -> str:
    """Return what to say of an input of which not one document is held out, though none was dropped."""
    if skipped := report["skipped_lines"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common())
        return f"no line or row has usable text ({reasons}); is it under another name? --text-key says which"
    share = f"no document falls into the held-out share of {report['heldout_share']:.2g}"
    return f"{share}; give more text, or write a larger heldout_share into a --config file"
