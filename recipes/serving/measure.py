"""Serve one model, in both norms, through every runtime that is here; one table of speed and of likeness to ours.

    python recipes/serving/measure.py --tokenizer runs/quickstart/tokenizer --output runs/serving

The weights are random, of the shape of a recipe. Texts of exactly 512 and 8,192 tokens, fp32 (or int8), each runtime in
a process of its own, one after the other. A runtime that is not installed gets a row that says so; --other names a
second Python, for versions that do not go together with this one's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from runtimes import INT8_FILE

from cmbert.bench.throughput import read_shape
from cmbert.config.schema import ModelConfig
from cmbert.errors import run_command
from cmbert.export.hf import export_folder
from cmbert.export.serving import export_served
from cmbert.files.whole import write_json, write_text
from cmbert.model.heads import MaskedLanguageModel
from cmbert.tokenizer import load_tokenizer
from cmbert.transfer.embedding.scoring import open_embedder
from cmbert.transfer.embedding.train import save_embedder

NORMS: tuple[Literal["rmsnorm", "layernorm"], ...] = ("rmsnorm", "layernorm")
HERE = ("cmbert", "transformers", "sentence-transformers", "onnxruntime", "onnxruntime int8")
OTHER = ("transformers", "sentence-transformers", "sentence-transformers onnx", "sentence-transformers onnx int8")
SPREAD = 0.2  # of norm weights around 1
OFFSET = 0.5  # standard deviations of the embeddings, by which their mean differs from 0
SHARPNESS = 2.0  # of queries and keys: attention that looks somewhere
"""With these a reader which takes one norm for the other, another RoPE base or another window is seen in the vectors
(tests/integration/test_serving_recipe.py)."""


@torch.no_grad()
def random_model(config: ModelConfig) -> MaskedLanguageModel:
    """Return a model whose every part matters to its vectors."""
    model = MaskedLanguageModel(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.copy_(1 + SPREAD * noise)
        else:
            weight.copy_(OFFSET + noise if "tok_embeddings" in name else noise * weight.shape[-1] ** -0.5)
        if name.endswith("Wqkv.weight"):
            weight[: 2 * config.hidden_size] *= SHARPNESS
    return model.eval()


def make_folders(config: ModelConfig, tokenizer: Path, folder: Path) -> None:
    """Write random weights as a folder for sentence-transformers, beside it FOLDER_onnx with fp32 and int8."""
    base, onnx = (folder.with_name(f"{folder.name}_{end}") for end in ("mlm", "onnx"))
    if not base.exists():
        export_folder(
            random_model(config).state_dict(),
            config,
            tokenizer,
            base,
            format="hf",
            texts=["你好"],
            card=lambda _: "random weights\n",
        )
    if not folder.exists():
        save_embedder(open_embedder(str(base), config.max_length), folder, lambda aside: None)
    if not onnx.exists():
        export_served(folder, onnx)
    if not (onnx / INT8_FILE).exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx / "model.onnx", onnx / INT8_FILE, weight_type=QuantType.QInt8)


def run_runtime(python: str, name: str, folder: Path, lengths: str, rounds: int) -> dict[str, Any]:
    """Run one runtime in a process of its own; return what it found, or {"missing": why}."""
    program = Path(__file__).with_name("runtimes.py")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        command = [python, str(program), name, str(folder), str(out), "--lengths", lengths, "--rounds", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            return found
    return {"missing": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:200]}


def table(results: Sequence[dict[str, Any]], lengths: Sequence[str]) -> str:
    """Return all that was measured as Markdown; cosines are the least over the texts, against cmbert's own vectors."""
    head = ["norm", "runtime", "least cosine to ours", *(f"tokens/s at {int(length):,}" for length in lengths)]
    lines = [head, ["---"] * len(head)]
    ours = {row["norm"]: np.array(row["vectors"]) for row in results if row["runtime"] == "cmbert" and "vectors" in row}
    for row in results:
        if "missing" in row:
            lines.append([row["norm"], row["runtime"], f"not run: {row['missing']}", *("" for _ in lengths)])
            continue
        cosine = (np.array(row["vectors"]) * ours[row["norm"]]).sum(-1).min() if row["norm"] in ours else np.nan
        versions = ", ".join(row["versions"])
        speeds = [f"{row[length]:,.0f}" for length in lengths]
        lines.append([row["norm"], f"{row['runtime']} ({versions})", f"{cosine:.6f}", *speeds])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def measure(options: argparse.Namespace) -> int:
    shape, _ = read_shape(options.shape, options.set)
    vocabulary = load_tokenizer(options.tokenizer).vocabulary
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for norm in [norm for norm in NORMS if norm in options.norms.split(",")]:
        folder = options.output / norm
        make_folders(replace(shape, norm=norm, vocab_size=vocabulary.rows), options.tokenizer, folder)
        if options.prepare:
            if options.other:  # which exports at the first call
                run_runtime(options.other, OTHER[-1], folder, "64", 1)
            continue
        runtimes = [(sys.executable, name) for name in HERE]
        runtimes += [(options.other, name) for name in OTHER if options.other]
        for python, name in runtimes:
            found = run_runtime(python, name, folder, options.lengths, options.rounds)
            results.append({"norm": norm, "runtime": name, **found})
            print(f"{norm}, {name}: {found.get('missing') or 'done'}", flush=True)
    if options.prepare:
        return 0
    write_json(options.output / "results.json", results)
    text = table(results, options.lengths.split(","))
    write_text(options.output / "results.md", text)
    print(text, end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a tokenizer; the embedding has its rows"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/serving"), help="folder for models and figures")
    parser.add_argument("--shape", type=Path, default=Path("recipes/base/stage1.toml"), help="recipe (default base's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--norms", default=",".join(NORMS), help="one or both (default both)")
    parser.add_argument("--lengths", default="512,8192", help="tokens of a text (default 512,8192)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="at the shortest length; fewer at longer ones (default 3)"
    )
    parser.add_argument("--other", default="", metavar="PYTHON", help="a second Python, with other versions")
    parser.add_argument("--prepare", action="store_true", help="make the models only")
    return measure(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run_command("measure.py", main))
