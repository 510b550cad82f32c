"""Label lines of text with a model that `cmbert finetune --save` wrote: python examples/predict.py FOLDER < lines.txt

A line is a text, or two with a tab between them. For each comes a line of JSON: the labels with their scores, the best
first, or the entities with their places.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 32  # lines that are read and answered together
PIPELINES = {"ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification"}


def kind_of(folder: Path) -> str:
    """Return the name of transformers' pipeline for the model in a folder. Raises ValueError if it is none of both."""
    try:
        (architecture,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no model; cmbert finetune ... --save DIR") from error
    found = [name for end, name in PIPELINES.items() if architecture.endswith(end)]
    if not found:
        raise ValueError(f"{folder}: {architecture} labels no texts; its README.md says how to use it")
    return found[0]


def read_texts(lines: Iterable[str]) -> Iterator[Any]:
    """Yield each line as the pipeline takes it. Raises ValueError for an empty one and for three texts."""
    for number, line in enumerate(lines, 1):
        texts = [text.strip() for text in line.rstrip("\n").split("\t")]
        if not all(texts) or len(texts) > 2:
            raise ValueError(f"line {number}: must be a text, or two with a tab between them")
        yield texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}


def main(folder: str = "") -> int:
    """Answer every line of standard input; return the exit code."""
    try:
        kind = kind_of(Path(folder))
        from transformers import AutoTokenizer, pipeline  # takes seconds, hence not first
        from transformers.utils import logging

        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        answer = pipeline(kind, model=folder, tokenizer=tokenizer, trust_remote_code=True)
        options = {"top_k": None, "truncation": True}
        if kind == "token-classification":
            options = {"aggregation_strategy": "simple"}
        texts = read_texts(sys.stdin)
        while some := list(islice(texts, BATCH)):
            for found in answer(some, batch_size=BATCH, **options):
                print(json.dumps(found, ensure_ascii=False, default=float), flush=True)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
