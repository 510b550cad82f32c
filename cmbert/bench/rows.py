"""What the benchmarks share: rows in runs/bench, printed as lines or as JSON."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbert.files.whole import json_text, write_json

OUTPUT = Path("runs/bench")
Row = dict[str, Any]
"""`work`, `peer` ("cmbert" is us), figures with their unit in the name; `ratio` on our rows is ours / the peer's."""


def keep_rows(name: str, rows: Sequence[Row]) -> None:
    """Write the rows to runs/bench/NAME.json."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_json(OUTPUT / f"{name}.json", list(rows))


def print_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print rows, as JSON or a line each."""
    if as_json:
        print(json_text(rows, indent=2))
        return
    for row in rows:
        pairs = itertools.chain.from_iterable((key, f"{v:,}" if isinstance(v, int) else v) for key, v in row.items())
        print(*pairs)
