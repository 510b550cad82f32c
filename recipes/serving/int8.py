"""What int8 costs a folder of `cmbert export --format onnx`: bytes, and the score in fp32 and int8.

    python recipes/serving/int8.py runs/embedding_onnx --pairs simclue/test_public.json
    python recipes/serving/int8.py runs/reviews_onnx --labelled chnsenticorp/dev.tsv

--pairs: sentence vectors, Spearman of cosine and label. --labelled: a classifier, accuracy on a TSV file whose header
names label and text_a.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from runtimes import INT8_FILE, tokenized

from cmbert.errors import InputError, run_command
from cmbert.model.config_json import read_json_object
from cmbert.transfer.embedding.pairs import read_labelled
from cmbert.transfer.embedding.scoring import score_cosines

BATCH = 32


def outputs(folder: Path, file: str, texts: Sequence[str]) -> np.ndarray:
    """Return what a model says of texts, (texts, D or C); texts of like length together."""
    settings = read_json_object(folder / "tokenizer_config.json")
    batch_of = tokenized(folder, settings["model_max_length"])
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    found = [session.run(None, batch_of([texts[index] for index in part]))[0] for part in parts]
    return np.concatenate(found)[np.argsort(order, kind="stable")]


def read_reviews(path: Path) -> Iterator[tuple[str, str]]:
    """Yield text and label of each row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
            if not row.get("text_a") or not row.get("label"):
                raise InputError(f"{path}:{number}: needs text_a and label, with a tab between them")
            yield row["text_a"], row["label"]


def score(folder: Path, file: str, options: argparse.Namespace) -> str:
    """Return the score of one file of a folder, as text."""
    if options.pairs:
        rows = read_labelled(options.pairs)
        texts = list(dict.fromkeys(text for row in rows for text in (row.first, row.second)))
        index = {text: number for number, text in enumerate(texts)}
        vectors_ND = outputs(folder, file, texts)
        first, second = ([index[getattr(row, side)] for row in rows] for side in ("first", "second"))
        cosine = np.einsum("pd,pd->p", vectors_ND[first], vectors_ND[second], dtype=np.float64)
        scored = score_cosines(cosine, np.array([row.grade for row in rows]))
        return f"Spearman {scored.spearman:.4f} on {scored.pairs:,} pairs"
    reviews, labels = zip(*read_reviews(options.labelled), strict=True)
    names: dict[str, Any] = read_json_object(folder / "config.json")["id2label"]
    said = [names[str(index)] for index in outputs(folder, file, reviews).argmax(-1)]
    right = sum(one == other for one, other in zip(said, labels, strict=True))
    return f"accuracy {right / len(labels):.4f} on {len(labels):,} texts"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `cmbert export --format onnx` wrote")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--pairs", type=Path, help="SimCLUE's test pairs")
    data.add_argument("--labelled", type=Path, help="TSV with label and text_a")
    options = parser.parse_args()
    folder = options.folder
    if not (folder / "model.onnx").is_file():
        raise InputError(f"{folder}: no model.onnx; give a folder that `cmbert export` wrote with --format onnx")
    if not (folder / INT8_FILE).is_file():
        quantize_dynamic(folder / "model.onnx", folder / INT8_FILE, weight_type=QuantType.QInt8)
    for file in ("model.onnx", INT8_FILE):
        print(f"{file}: {(folder / file).stat().st_size / 1e6:,.1f} MB, {score(folder, file, options)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("int8.py", main))
