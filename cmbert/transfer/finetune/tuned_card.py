"""The README of a model that `cmbert finetune --save` wrote: how to use it, what it learned from, what it scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmbert.evaluate.table import markdown_table
from cmbert.model.config_json import runs_our_code
from cmbert.transfer.finetune.agreement import Agreement
from cmbert.transfer.finetune.results import spell
from cmbert.transfer.finetune.trial import TrialResult
from cmbert.transfer.start_card import pretraining_chapters
from cmbert.transfer.tasks.task import Kind, Task

MOST_NAMED = 50  # labels
EXAMPLE = ("这家酒店的房间很干净，服务也好。", "住得很满意。")

HEAD = """\
---
language: zh
library_name: transformers
pipeline_tag: {tag}
tags:
- modernbert
- chinese
- {tag}
---

# {start}, tuned on {task}

## Use

`folder` is the path of this folder or its name on the hub. {what}

```python
{program}```
"""

WHAT: dict[Kind, str] = {
    "classification": "Labels: {labels}.",
    "multilabel": "A text has each of the labels {labels} whose score, a probability, is above 0.5.",
    "regression": "The score is a number in the unit of {labels}.",
    "tokens": "Types of entities: {labels}.",
    "choice": "Each choice is read with the text; the one with the highest score is the answer.",
    "span": "The question is read with a window of the text; the answer's first and last token have the best scores.",
}
CUT = " Texts are cut to {:,} tokens, as in training."
TAGS: dict[Kind, str] = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "regression": "text-classification",
    "tokens": "token-classification",
    "choice": "multiple-choice",
    "span": "question-answering",
}

PIPELINE = """\
from transformers import pipeline

classify = pipeline("text-classification", model=folder{trust})
print(classify({example}, {options}truncation=True))
"""

TOKENS = """\
from transformers import pipeline

find = pipeline("token-classification", model=folder, aggregation_strategy="simple"{trust})
for entity in find({example}):
    print(entity["entity_group"], entity["start"], entity["end"], round(float(entity["score"]), 4))
"""

CHOICE = """\
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMultipleChoice.from_pretrained(folder{trust})
text, choices = "小王今天生病了，没有去学校。", ["小王在哪里？ 家里", "小王在哪里？ 学校"]
inputs = tokenizer(choices, [text] * len(choices), padding=True, return_tensors="pt")
scores = model(**{{name: inputs[name][None] for name in ("input_ids", "attention_mask")}}).logits[0]
print(choices[scores.argmax()])
"""

SPAN = """\
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder{trust})
question, text = "这座桥建于哪一年？", "这座桥建于1862年，长三百米。"
inputs = tokenizer(question, text, return_offsets_mapping=True, return_tensors="pt")
found = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
first = max(i for i, part in enumerate(inputs.sequence_ids(0)) if part == 0) + 2  # of the text
start = first + found.start_logits[0, first:-1].argmax().item()
end = start + found.end_logits[0, start:-1].argmax().item()
print(text[inputs["offset_mapping"][0, start, 0] : inputs["offset_mapping"][0, end, 1]])
"""


def render_card(
    task: Task,
    best: TrialResult,
    result: Mapping[str, Any],
    identity: Mapping[str, Any],
    agreement: Agreement,
    folder: Path,
    start: Path | None,
) -> str:
    """Return the card as Markdown with a YAML head.

    result, identity: what result.json and identity.json hold. folder: of the tuned model. start: of the one it was
    tuned from, whose card's chapters on its pretraining are taken over if it has them.
    """
    trust = ", trust_remote_code=True" if runs_our_code(folder) else ""
    first, second = (json.dumps(text, ensure_ascii=False) for text in EXAMPLE)
    pair = f'{{"text": {first}, "text_pair": {second}}}' if len(task.text_keys) == 2 else first
    programs: dict[Kind, str] = {"tokens": TOKENS, "choice": CHOICE, "span": SPAN}
    names = task.labels or task.outputs
    labels = ", ".join(f"`{label}`" for label in names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    what = WHAT[task.kind].format(labels=labels) + CUT.format(identity["max_length"]) * (task.kind != "span")
    if trust:
        what += " It carries a small code file, which `trust_remote_code=True` lets transformers run."
    head = HEAD.format(
        start=result["model"],
        task=task.name,
        tag=TAGS[task.kind],
        what=what,
        program=programs.get(task.kind, PIPELINE).format(
            trust=trust, example=pair, options="top_k=None, " if task.kind == "multilabel" else ""
        ),
    )
    setting = best.setting
    training = (
        f"By `cmbert finetune` from `{result['model']}` (weights, BLAKE2b: `{identity['weights'][:16]}`) on "
        f"{result['train_examples']:,} examples of {_files(task.train, identity)}: learning rate "
        f"{setting.learning_rate:g}, batches of {setting.batch_size}, {setting.epochs} epochs, at most "
        f"{identity['max_length']:,} tokens. Of {len(result['curves'])} seeds this is number {best.seed}, the best on "
        f"dev; {len(result['grid'])} settings were tried. The model of the last epoch was taken.\n"
    )
    rows = []
    for split, scores in (("dev", best.dev), ("test", best.test)):
        found = result["splits"].get(split, {})
        rows += [(split, name.replace("_", " "), f"{score:.2f}", spell(found.get(name)), f"{found['examples']:,}")
                 for name, score in scores.items()]  # fmt: skip
    results = markdown_table(("split", "score, percent", "this model", "all seeds", "examples"), rows)
    return (
        f"{head}\n## Training\n\n{training}\n## Results\n\n{results}\n\n± is half the 95 % interval over the seeds "
        "(their number in brackets). Setting and seed were chosen on dev, whose figures flatter a little.\n\nBefore "
        f"this folder appeared: {agreement}.\n\n{LIMITS}"
        + (pretraining_chapters(result["model"], start) if start else "")
    )


LIMITS = """\
## Limits

- It answers every text, also those that are nothing like its training examples.
- It repeats what its training data say, wrong and unfair things included.
- Whether the weights may be passed on depends on the model it was tuned from and on the examples: check both.

"""


def _files(names: Sequence[str], identity: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` (BLAKE2b: `{identity['data'][name][:16]}`)" for name in names)
