"""The README of a model that `cmbert embed-train` made: how to load it, what it came from, what it scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmbert.transfer.contamination import TrainingFile
from cmbert.transfer.start_card import pretraining_chapters

CARD = """\
---
language: zh
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- chinese
---

# {name}, tuned for sentence similarity

## Use

`folder` is the path of this folder.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder{trust})
vectors = model.encode(["今天天气很好", "外面阳光明媚"])
print(model.similarity(vectors, vectors))
```

## What it was made of

By `cmbert embed-train` from `{name}` (weights, BLAKE2b: {hashes}): {pairs:,} pairs in {steps:,} steps, negatives
`{negatives}`, learning rate {learning_rate:g}, batches of {batch_size}, {epochs} epochs, texts of at most {max_length}
tokens, seed {seed}. All it was ever tuned on, an earlier tuning included:

{files}

## Results

Cosine against the labels of `{evaluation}`, {eval_pairs:,} pairs; {seen:.2%} of their texts were trained on.

{scores}

"""


def render_card(
    settings: Mapping[str, Any],
    before: Mapping[str, Any],
    record: Mapping[str, Any],
    files: Sequence[TrainingFile],
    start: Path,
) -> str:
    """Return the card as Markdown with a YAML head.

    settings, before, record: what settings.json, before.json and run.json hold. start: folder of the start model; its
    own card's chapters on data and stages are taken over if `cmbert export` wrote it.
    """
    training, model = record["training"], settings["model"]
    rows = [(name, f"{score['pearson']:.4f}", f"{score['spearman']:.4f}") for name, score in
            (("before", before), ("after", record["after"]))]  # fmt: skip
    listed = [(file.path, file.source, f"{file.pairs:,}", f"`{file.blake2b[:16]}`") for file in files]
    card = CARD.format(
        name=model["name"],
        trust=", trust_remote_code=True" if (start / "modeling_cmbert.py").is_file() else "",
        hashes=", ".join(f"`{found[:16]}`" for found in model["blake2b"]),
        pairs=record["pairs"],
        steps=training["steps"],
        files=_table(("file", "source", "pairs", "BLAKE2b"), listed),
        evaluation=settings["files"]["eval"][0]["path"],
        eval_pairs=before["pairs"],
        seen=record["evaluation_texts_seen_share"],
        scores=_table(("", "Pearson", "Spearman"), rows),
        **{key: settings[key] for key in ("negatives", "learning_rate", "batch_size", "epochs", "max_length", "seed")},
    )
    return card + pretraining_chapters(model["name"], start)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
