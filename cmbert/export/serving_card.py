"""The README of a served model: how to run it with onnxruntime alone, what the gate found, the source's chapters."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmbert.config.schema import ModelConfig
from cmbert.export.card_use import front_matter, usage
from cmbert.export.gate import ROUNDINGS
from cmbert.export.hf import CARD_FILE
from cmbert.export.importing import licence_of
from cmbert.export.serving_gate import Proof
from cmbert.files.operations import read_input
from cmbert.tokenizer import Tokenizer

Head = Literal["vectors", "texts", "tokens", "mask"]
"""One vector a text, labels of a text, labels of each token, or of each token the logits of the vocabulary."""
SHOWN_LABELS = 20
TEXTS = '["今天天气很好", "外面阳光明媚"]'
PIPELINES: dict[Head, str] = {
    "vectors": "sentence-similarity",
    "texts": "text-classification",
    "tokens": "token-classification",
}
WHAT: dict[Head, str] = {
    "vectors": "`sentence_embedding`, one vector of length 1 for each text (texts, {width}): the {pooling}. Their dot "
    "product is the cosine",
    "texts": "`logits`, one for each label of each text (texts, {labels}). A text of two parts, if the model was tuned "
    "on such, is `tokenizer.encode(first, second)`",
    "tokens": "`logits`, one for each label of each token (texts, length, {labels})",
}
POOLED = {"mean": "mean of the hidden states, [CLS] and [SEP] included", "cls": "hidden state of [CLS]"}

RUN = """\
```python
{more}import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
{plain}tokenizer.enable_truncation({max_length})
tokenizer.enable_padding(pad_id={pad_id}, pad_token="{pad}")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
texts = tokenizer.encode_batch({texts})
ids = np.array([text.ids for text in texts])
mask = np.array([text.attention_mask for text in texts])
{output} = session.run(["{name}"], {{"input_ids": ids, "attention_mask": mask}})[0]
{end}```
"""
PLAIN = 'tokenizer.encode_special_tokens = True  # a text\'s own "[MASK]" is text, as in training\n'
NAMES = 'labels = json.load(open(folder + "/config.json", encoding="utf-8"))["id2label"]\n'
ENDS: dict[Head, str] = {
    "vectors": 'print("cosine", vectors[0] @ vectors[1])\n',
    "texts": f"""\
{NAMES}for row in logits:
    print(labels[str(row.argmax())], row)
""",
    "tokens": f"""\
{NAMES}for text, rows in zip(texts, logits):
    for id, real, row in zip(text.ids, text.attention_mask, rows):
        if real:
            print(tokenizer.decode([id], skip_special_tokens=False), labels[str(row.argmax())])
""",
}
PROBLEMS = {
    "multi_label_classification": f"""\
{NAMES}for row in logits:
    print([labels[str(index)] for index in np.flatnonzero(row > 0)], row)  # above 0: likelier than not
""",
    "regression": f"{NAMES}for row in logits:\n    print(labels['0'], row[0])\n",
}
"""The same for what is no choice of one label, by config.json's problem_type."""


@dataclass(frozen=True)
class Use:
    """What a reader must know to use model.onnx."""

    head: Head
    config: ModelConfig
    max_length: int
    """Tokens after which the card's program cuts texts."""
    tokenizer: Tokenizer
    pooling: Literal["mean", "cls"] = "mean"
    """Of vectors."""
    labels: tuple[str, ...] = ()
    """Of a classifier."""
    problem: str | None = None
    """Of a classifier of texts, as config.json calls it."""
    splits_specials: bool = False
    """Whether text that looks like a special token is read as text."""


def render_card(source: Path, use: Use, proof: Proof) -> str:
    """Return the card as Markdown with a YAML head; the chapters of the card in `source` but its use are kept."""
    licence = licence_of(source)
    card = (read_input(source / CARD_FILE) or b"").decode("utf-8", "replace")
    title = re.search(r"^# (.+)$", card, re.MULTILINE)
    sections = [
        front_matter("onnx", use.tokenizer, licence) if use.head == "mask" else _front(use, licence),
        f"# {title[1] if title else source.resolve().name}: model.onnx\n",
        usage("onnx", use.config, use.tokenizer) if use.head == "mask" else _usage(use),
        _proof(proof),
        *filter(None, [_chapters(card)]),
    ]
    return "\n".join(sections)


def _front(use: Use, licence: str | None) -> str:
    lines = ["---", "language: zh", *([f"license: {licence}"] if licence else []), "library_name: onnx"]
    return "\n".join([*lines, f"pipeline_tag: {PIPELINES[use.head]}", "tags:", "- onnx", "- chinese", "---", ""])


def _usage(use: Use) -> str:
    vocabulary = use.tokenizer.vocabulary
    what = WHAT[use.head].format(
        width=use.config.hidden_size, pooling=POOLED[use.pooling], labels=f"{len(use.labels)} labels"
    )
    names = ", ".join(f"`{name}`" for name in use.labels[:SHOWN_LABELS])
    more = ", ..." if len(use.labels) > SHOWN_LABELS else ""
    program = RUN.format(
        more="" if use.head == "vectors" else "import json\n\n",
        max_length=use.max_length,
        pad_id=vocabulary.pad_id,
        pad=use.tokenizer.backend.id_to_token(vocabulary.pad_id),
        texts=TEXTS,
        output="vectors" if use.head == "vectors" else "logits",
        name="sentence_embedding" if use.head == "vectors" else "logits",
        end=PROBLEMS.get(use.problem or "", ENDS[use.head]) if use.head == "texts" else ENDS[use.head],
        plain=PLAIN if use.splits_specials else "",
    )
    return (
        f"## Use\n\n`folder` is the path of this folder. `model.onnx` takes `input_ids` and `attention_mask`, any "
        f"number of texts of up to {use.config.max_length:,} tokens, padded at the right, and returns {what}.\n"
        f"{f'Labels, in order: {names}{more}.{chr(10)}' if names else ''}\n{program}"
    )


def _proof(proof: Proof) -> str:
    measured = proof.comparison
    cosine = "" if proof.least_cosine is None else f" The least cosine was {proof.least_cosine:.7f}."
    return (
        "## How it was proved\n\nBefore this folder appeared, onnxruntime's output in fp32, short and long texts in "
        f"one batch, was compared with the model's own in fp64 on {measured.num_tokens:,} tokens. Largest error "
        f"{measured.errors['onnx']:.1e}; that of the model's own fp32 is {measured.rounding:.1e}, allowed are "
        f"{ROUNDINGS:g} times as much.{cosine}\n"
    )


def _chapters(card: str) -> str:
    """Return the chapters that follow a card's own use, which is of another format."""
    found = re.search(r"^## Use\n.*?(?=^#{1,2} )(.*)", card, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
