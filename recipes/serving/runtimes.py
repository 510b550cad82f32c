"""Encode texts with one runtime, and say how fast: measure.py starts this once for each.

Imports nothing of cmbert but for `cmbert`, so that any Python which has the runtime can run it.

    python recipes/serving/runtimes.py RUNTIME FOLDER OUT.json --lengths 512,8192 --rounds 3
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SAID = "今天天气很好，我们去公园散步，路上遇见一位老朋友；他说这家酒店的服务不错，下次还会来住。"
TEXTS = ["今天天气很好", "外面阳光明媚，适合散步", SAID, SAID * 12]
"""What every runtime's vectors are compared on: one batch, short and long."""
BATCH_TOKENS = 2048
INT8_FILE = "model_int8.onnx"
CONFIGURATION = "avx2"
"""Of sentence-transformers' int8 on processors without VNNI; avx512_vnni where there is, arm64 on ARM."""

Encode = Callable[[list[str]], np.ndarray]
"""Texts -> their vectors (N, D), of length 1."""


def tokenized(folder: Path, length: int) -> Callable[[list[str]], dict[str, np.ndarray]]:
    """Return texts -> input_ids and attention_mask (N, L), cut at `length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def run(texts: list[str]) -> dict[str, np.ndarray]:
        batch = tokenizer.encode_batch(texts)
        names = {"input_ids": "ids", "attention_mask": "attention_mask"}
        return {name: np.array([getattr(text, field) for text in batch]) for name, field in names.items()}

    return run


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Return vectors of length 1."""
    return vectors_ND / np.linalg.norm(vectors_ND, axis=-1, keepdims=True)


def open_cmbert(folder: Path, length: int) -> Encode:
    """Our own model, without padding: what the others are compared with."""
    import torch

    from cmbert.model.folder import read_config, read_weights
    from cmbert.model.heads import MaskedLanguageModel

    encoder = MaskedLanguageModel(read_config(folder)).model.eval()
    own = encoder.state_dict()
    encoder.load_state_dict({name: weight.view_as(own[name]) for name, weight in read_weights(folder).items()})
    batch_of = tokenized(folder, length)

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        batch = batch_of(texts)
        real, lengths = batch["attention_mask"].astype(bool), batch["attention_mask"].sum(1).tolist()
        bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        hidden_TD = encoder(torch.from_numpy(batch["input_ids"][real]), bounds)
        return unit(np.stack([part.mean(0).numpy() for part in hidden_TD.split(lengths)]))

    return encode


def open_transformers(folder: Path, length: int) -> Encode:
    """transformers' own class, the mean taken here."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="sdpa").eval()
    batch_of = tokenized(folder, length)

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        batch = {name: torch.from_numpy(values) for name, values in batch_of(texts).items()}
        real_NL1 = batch["attention_mask"][..., None]
        return unit(((model(**batch).last_hidden_state * real_NL1).sum(1) / real_NL1.sum(1)).numpy())

    return encode


def sentence_transformer(folder: Path, length: int, **options: Any) -> Encode:
    """A model of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)
    model.max_seq_length = length
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def optimum_folder(folder: Path) -> Path:
    """Return where sentence-transformers' ONNX of a model lies; made at the first call, fp32 and int8."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    made = folder.with_name(f"{folder.name}_optimum")
    if not (made / "onnx" / f"model_qint8_{CONFIGURATION}.onnx").is_file() and not list(made.glob("onnx/*quint8*")):
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", backend="onnx")
        model.save_pretrained(str(made))
        export_dynamic_quantized_onnx_model(model, CONFIGURATION, str(made))
    return made


def open_optimum(folder: Path, length: int, *, int8: bool = False) -> Encode:
    """The ONNX that sentence-transformers exports through optimum, in fp32, or in int8."""
    made = optimum_folder(folder)
    files = sorted(path.name for path in (made / "onnx").glob("*.onnx"))
    name = next(name for name in files if ("int8" in name) == int8)
    return sentence_transformer(made, length, backend="onnx", model_kwargs={"file_name": f"onnx/{name}"})


def open_onnxruntime(folder: Path, length: int, *, file: str = "model.onnx") -> Encode:
    """What `cmbert export --format onnx` wrote beside `folder`."""
    import onnxruntime

    made = folder.with_name(f"{folder.name}_onnx")
    session = onnxruntime.InferenceSession(made / file, providers=["CPUExecutionProvider"])
    batch_of = tokenized(made, length)
    return lambda texts: session.run(["sentence_embedding"], batch_of(texts))[0]


RUNTIMES: dict[str, Callable[[Path, int], Encode]] = {
    "cmbert": open_cmbert,
    "transformers": open_transformers,
    "sentence-transformers": sentence_transformer,
    "sentence-transformers onnx": open_optimum,
    "sentence-transformers onnx int8": lambda folder, length: open_optimum(folder, length, int8=True),
    "onnxruntime": open_onnxruntime,
    "onnxruntime int8": lambda folder, length: open_onnxruntime(folder, length, file=INT8_FILE),
}
PACKAGES = {"cmbert": ("torch",), "transformers": ("transformers",), "onnxruntime": ("onnxruntime",)}
"""Whose versions a runtime's row names; of the rest these:"""
OTHER_PACKAGES = ("sentence-transformers", "transformers", "optimum-onnx")


def tokens_per_second(encode: Encode, length: int, rounds: int) -> float:
    """Return the median over rounds of texts of exactly `length` tokens, tokenizing included."""
    texts = [SAID * (length // 8)] * max(1, BATCH_TOKENS // length)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        encode(texts)
        seconds.append(time.perf_counter() - started)
    return len(texts) * length / statistics.median(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lengths", default="512")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    try:
        encode = RUNTIMES[options.runtime](options.folder, max(lengths))
    except ImportError as error:
        options.out.write_text(json.dumps({"missing": str(error).splitlines()[0]}), encoding="utf-8")
        return 0
    found: dict[str, Any] = {"vectors": encode(TEXTS).tolist()}  # the first call also warms up
    for length in lengths:
        opened = encode if length == max(lengths) else RUNTIMES[options.runtime](options.folder, length)
        rounds = max(1, options.rounds * min(lengths) // length)
        found[str(length)] = tokens_per_second(opened, length, rounds)
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    named = PACKAGES.get(options.runtime.removesuffix(" int8"), OTHER_PACKAGES)
    found["versions"] = [f"{name} {importlib.metadata.version(name)}" for name in named if name in installed]
    options.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
