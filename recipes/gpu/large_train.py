"""`cmbert train` that notes when and where the host waits for the GPU, and how long a checkpoint takes to load.

Started as `python large_train.py NOTES.json train RECIPE ...`. Its weights are torch's own, drawn in a tenth of the
time of ours: a run of a few steps does not learn.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from measuring import quick_weights

from cmbert.cli import main
from cmbert.train import loop, start

WAITS = "synchroniz"  # in the warning of torch.cuda.set_sync_debug_mode


def run(notes: Path, arguments: list[str]) -> int:
    """Run the command, write the notes, and end the process as the command does."""
    waits: list[tuple[float, str]] = []
    loads: list[float] = []
    show, load, train = warnings.showwarning, start.load_engine, loop.train

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if WAITS in str(message):
            waits.append((time.time(), f"{filename}:{lineno}"))
        else:
            show(message, category, filename, lineno, *rest)

    def timed_load(*given: Any, **named: Any) -> None:
        started = time.perf_counter()
        load(*given, **named)
        loads.append(time.perf_counter() - started)

    def noted_train(*given: Any, **named: Any) -> int:
        try:
            return train(*given, **named)
        finally:
            notes.write_text(json.dumps({"waits": waits, "loads": loads}), encoding="utf-8")

    quick_weights()
    warnings.simplefilter("always")
    warnings.showwarning = note  # type: ignore[assignment]
    start.load_engine = timed_load
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    loop.train = noted_train
    return main(arguments)  # ends the process


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
