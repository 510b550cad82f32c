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

import torch

from cmbert.data.synthetic import write_synthetic
from cmbert.errors import run_command
from cmbert.memory import require_memory

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
    write_synthetic(folder, VOCAB_SIZE, [DOCUMENT_TOKENS] * NUM_DOCUMENTS)
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
