"""What the card of a tuned model takes over from the card of the model it was tuned from."""

import re
from pathlib import Path

CARD_FILE = "README.md"
PRETRAINING = re.compile(r"^## Training data\n.*?(?=^## Results)", re.MULTILINE | re.DOTALL)  # of an export's card


def pretraining_chapters(name: str, folder: Path) -> str:
    """Return the chapters on data and stages of the card in `folder`, if `cmbert export` wrote it, under a heading."""
    path = folder / CARD_FILE
    found = PRETRAINING.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return f"# The start: how `{name}` was pretrained\n\n{found[0]}" if found else ""
