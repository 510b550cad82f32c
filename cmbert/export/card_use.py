"""The part of a model card that does not depend on the run: its head, and how to load the folder."""

import json

from cmbert.config.schema import ModelConfig
from cmbert.export.hf import Format
from cmbert.model.config_json import CODE_FILE
from cmbert.tokenizer import Tokenizer

CODE_LICENCE = "apache-2.0"
OLDEST_TRANSFORMERS = "4.48"  # the first with ModernBERT; tests/cmbert/export/test_old_transformers.py
EXAMPLE = "今天天气很{mask}，我们去公园散步。"

FILL_MASK = """\
```python
from transformers import pipeline

fill = pipeline("fill-mask", model=folder{trust})
for guess in fill("{example}"):
    print(guess["token_str"], round(guess["score"], 4))
```
"""

SENTENCES = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder{trust})
vectors = model.encode(["今天天气很好", "外面阳光明媚"])
print(model.similarity(vectors, vectors))
```
"""

ONNX = """\
```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
text = tokenizer.encode("{example}")
feed = {{"input_ids": np.array([text.ids]), "attention_mask": np.array([text.attention_mask])}}
logits = session.run(["logits"], feed)[0]  # (texts, length, vocabulary)
place = text.tokens.index("{mask}")
for token in logits[0, place].argsort()[::-1][:5]:
    print(tokenizer.decode([token]))
```
"""


def _mask(tokenizer: Tokenizer) -> str:
    return tokenizer.backend.id_to_token(tokenizer.vocabulary.mask_id) or ""


def front_matter(format: Format, tokenizer: Tokenizer, licence: str | None) -> str:
    """Return the YAML head that the Hugging Face hub reads; licence: None = the ancestor's, which is not known."""
    library, tags = (
        "transformers",
        ["fill-mask", "modernbert", "chinese", "sentence-transformers", "feature-extraction"],
    )
    if format == "onnx":
        library, tags = "onnx", ["onnx", "fill-mask", "modernbert", "chinese"]
    mask = json.dumps(_mask(tokenizer), ensure_ascii=False)
    lines = ["---", "language: zh", f"license: {licence or 'unknown'}", f"library_name: {library}"]
    lines += ["pipeline_tag: fill-mask", f"mask_token: {mask}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    return "\n".join(lines)


def usage(format: Format, model: ModelConfig, tokenizer: Tokenizer) -> str:
    """Return how to load the folder, as Python that runs once `folder` is set."""
    mask, pad_id = _mask(tokenizer), tokenizer.vocabulary.pad_id
    example = EXAMPLE.format(mask=mask)
    if format == "onnx":
        return (
            "## Use\n\n`folder` is the path of this folder. `model.onnx` gives the logits of every token, any number "
            f"of texts of any length up to {model.max_length:,} tokens. Shorter texts of a batch are padded with id "
            f"{pad_id} and attention_mask 0.\n\n{ONNX.format(example=example, mask=mask)}"
        )
    code = (
        f"The folder carries `{CODE_FILE.name}`, which `trust_remote_code=True` lets transformers run; without it "
        "loading the weights fails (`size mismatch`). The tokenizer needs no code. "
    )
    remote = model.norm == "rmsnorm"
    trust = ", trust_remote_code=True" if remote else ""
    needs = f"It needs transformers {OLDEST_TRANSFORMERS} or later."
    return (
        f"## Use\n\n`folder` is the path of this folder or its name on the hub. {code if remote else ''}{needs}\n\n"
        f"{FILL_MASK.format(trust=trust, example=example)}\nAs vectors of sentences (the mean of the final hidden "
        f"states, [CLS] and [SEP] included):\n\n{SENTENCES.format(trust=trust)}"
    )
