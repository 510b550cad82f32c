"""Rehearse the large model on one machine without a GPU: a step, a checkpoint, a resume, a second step.

    python recipes/large/rehearsal.py [--keep DIR]

Needs about 16 GB of memory and 12 GB of disk, and ten minutes on two cores. Weights, optimizer, checkpoint and resume
are those of the real run (stage1.toml, ZeRO 1, bf16); only the text (random ids) and the batch (2 rows) are small. It
compares memory and disk with what `cmbert plan` says.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import torch

from cmbert.data.shards import ShardWriter, token_dtype, write_manifest
from cmbert.errors import run_command
from cmbert.evaluate.memory import require_memory
from cmbert.tokenizer import NUM_SPECIAL_TOKENS, SPECIAL_TOKENS, load_tokenizer

VOCAB_SIZE = 32_768
CPU = torch.device("cpu")
NUM_DOCUMENTS, DOCUMENT_TOKENS = 64, 900

RECIPE = """extends = "{repository}/recipes/large/stage1.toml"
run_directory = "{folder}/run"
[data]
tokenizer = "{folder}/tokenizer"
num_workers = 0
[[data.sources]]
path = "{folder}/shards"
max_epochs = 1e9
[train]
rows_per_step = 2
micro_batch_rows = 1
deepspeed = "{repository}/ds_configs/zero1.json"
[evaluation]
shards = ""
[kernels]
compile = false
"""


def make_inputs(folder: Path) -> Path:
    """Write a tokenizer of made-up tokens, random documents and the recipe; return the recipe."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {chr(0x4E00 + index): index for index in range(NUM_SPECIAL_TOKENS, VOCAB_SIZE)}
    (folder / "tokenizer").mkdir(parents=True)
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[])
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer = load_tokenizer(folder / "tokenizer", vocab_size=VOCAB_SIZE)
    random = np.random.default_rng(0)
    (folder / "shards").mkdir()
    writer = ShardWriter(folder / "shards", "00000", token_dtype(VOCAB_SIZE))
    for _ in range(NUM_DOCUMENTS):
        tokens = random.integers(NUM_SPECIAL_TOKENS, VOCAB_SIZE, DOCUMENT_TOKENS)
        writer.append(tokens, np.array([DOCUMENT_TOKENS]), random.random(DOCUMENT_TOKENS) < 0.6)
    entry = {"fingerprint": tokenizer.fingerprint, "vocab_size": VOCAB_SIZE}
    write_manifest(folder / "shards", {"tokenizer": entry, "shards": [writer.close()]})
    recipe = folder / "rehearsal.toml"
    repository = Path(__file__).resolve().parents[2]
    recipe.write_text(RECIPE.format(repository=repository, folder=folder), encoding="utf-8")
    return recipe


def rehearse(folder: Path) -> None:
    recipe = make_inputs(folder)
    cmbert = [sys.executable, "-m", "cmbert"]
    command = [*cmbert, "plan", str(recipe), "--gpus", "1", "--json"]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    memory, copy = plan["memory"][plan["zero_stage"] - 1]["total_bytes"], plan["checkpoint_bytes"]
    require_memory("the large model with a checkpoint being written", memory + copy, CPU, "try make demo instead")
    for _ in range(2):
        subprocess.run([*cmbert, "train", str(recipe), "--max-steps", "1"], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    (newest,) = (folder / "run" / "checkpoints").glob("step_000000002")
    disk = sum(path.stat().st_size for path in newest.rglob("*"))
    print(f"checkpoint: {disk / 1e9:.2f} GB on disk, plan {copy / 1e9:.2f} GB")
    print(
        f"peak memory of a process: {peak / 1e9:.2f} GB; plan {memory / 1e9:.2f} GB + {copy / 1e9:.2f} GB for the copy "
        "of a checkpoint being written, which on a GPU machine lies in host memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="do it in this new folder and leave it there")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        rehearse(options.keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        rehearse(Path(folder))


if __name__ == "__main__":
    sys.exit(run_command("rehearsal", main))
