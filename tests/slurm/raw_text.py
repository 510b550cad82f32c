"""Two small corpora of raw text with recipes for them, and what one process without Slurm makes of them."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cmbert.files.operations import hash_file
from tests.slurm.desk import ROOT, Desk

CORPORA = ("laws", "reviews")
VOCAB_SIZE = 512
SMALL_TASKS = f"{ROOT}/tests/slurm/small_tasks.py"
PYTHON = """#!/bin/bash
export PYTHONPATH={root} OMP_NUM_THREADS=1
if [[ $* == "-u -m data_tools "* ]]; then
    exec {python} -u {small} "${{@:4}}"
fi
exec {python} "$@"
"""
STAGE = """run_directory = "runs/tiny/stage{number}"
[model]
num_layers = 3
hidden_size = 32
num_heads = 2
intermediate_size = 48
vocab_size = {vocab_size}
local_window = 16
[data]
tokenizer = "runs/tiny/tokenizer"
context_tokens = 64
[[data.sources]]
path = "runs/tiny/shards/laws"
[[data.sources]]
path = "runs/tiny/shards/reviews"
[schedule]
lr_max = 1e-3
lr_min = 1e-4
warmup_tokens = 1024
[mask]
warmup_tokens = 1024
[train]
total_tokens = 8192
rows_per_step = 8
micro_batch_rows = 2
deepspeed = "ds.json"
{more}
[evaluation]
shards = "runs/tiny/heldout"
"""
MADE = ("text", "runs/tiny/tokenizer", "runs/tiny/shards", "runs/tiny/heldout")


def write_raw_text(folder: Path, num_documents: int) -> None:
    """Write raw/, recipes/tiny/ and its cleaning; a fifth of the documents are copies or near copies of others."""
    choice = random.Random(0)
    known: list[str] = []
    for name in CORPORA:
        (folder / "raw" / name).mkdir(parents=True)
        for part in range(3):
            texts = [_text(choice, known) for _ in range(num_documents // 3)]
            lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            (folder / "raw" / name / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    recipes = folder / "recipes" / "tiny"
    (recipes / "clean").mkdir(parents=True)
    for name in CORPORA:
        text = f'source = "{name}"\nheldout_share = 0.1\n'
        (recipes / "clean" / f"{name}.toml").write_text(text, encoding="utf-8")
    for number, more in ((1, ""), (2, 'init_from = "runs/tiny/stage1"')):
        text = STAGE.format(number=number, vocab_size=VOCAB_SIZE, more=more)
        (recipes / f"stage{number}.toml").write_text(text, encoding="utf-8")
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")


def _text(choice: random.Random, known: list[str]) -> str:
    """Return a new text, or one in ten times a copy, one in ten a near copy of one that was given before."""
    kind = choice.random() if known else 1.0
    if kind < 0.2:
        text = choice.choice(known)
        return text if kind < 0.1 else text.replace("。", "！", 1)
    sentences = [
        "".join(chr(0x4E00 + choice.randrange(400)) for _ in range(choice.randint(8, 20))) + "。"
        for _ in range(choice.randint(4, 25))
    ]
    known.append("".join(sentences))
    return known[-1]


def seat(desk: Desk, num_documents: int) -> None:
    """Give a desk raw text (documents of a corpus), a Python of small tasks, and a stage 1 that does not begin."""
    write_raw_text(desk.directory, num_documents)
    text = PYTHON.format(root=ROOT, python=sys.executable, small=SMALL_TASKS)
    (desk.directory / "python").write_text(text, encoding="utf-8")
    with open(desk.directory / "slurm" / "env.sh", "a", encoding="utf-8") as file:
        file.write("CMBERT_STAGE_OPTIONS+=(--begin=now+100days)\n")


def set_cpus(desk: Desk, cpus: int) -> None:
    """Let each job without GPUs have so many CPUs, and workers."""
    with open(desk.directory / "slurm" / "env.sh", "a", encoding="utf-8") as file:
        file.write(f"CMBERT_CPU_OPTIONS=(--cpus-per-task={cpus})\n")


def make_alone(folder: Path, num_documents: int) -> dict[str, str]:
    """Make all of it in one process after the other, with one worker each; return the hashes."""
    folder.mkdir()
    write_raw_text(folder, num_documents)
    config = "recipes/tiny/clean/{}.toml"
    for name in CORPORA:
        clean = ("clean", "--input", f"raw/{name}", "--config", config.format(name))
        _run(folder, *clean, "--heldout", f"text/heldout/{name}")
    for name in CORPORA:
        clean = ("clean", "--input", f"raw/{name}", "--config", config.format(name))
        _run(folder, *clean, "--output", f"text/{name}", "--against", "text/heldout")
    tokenizer = "runs/tiny/tokenizer"
    size = ("--vocab-size", str(VOCAB_SIZE))
    _run(folder, "train-tokenizer", "--input", f"text/{CORPORA[0]}", "--output", tokenizer, *size)
    for name in CORPORA:
        _run(folder, *_shards(f"text/{name}", tokenizer, f"runs/tiny/shards/{name}"))
    _run(folder, *_shards("text/heldout", tokenizer, "runs/tiny/heldout"))
    return hashes(folder)


def _shards(text: str, tokenizer: str, output: str) -> tuple[str, ...]:
    return ("preprocess", "--input", text, "--tokenizer", tokenizer, "--output", output)


def _run(folder: Path, *words: str) -> None:
    workers = () if words[0] == "train-tokenizer" else ("--workers", "1")
    command = [sys.executable, SMALL_TASKS, *words, *workers]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file that was made, hidden ones too, by its path."""
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(_files(folder))}


def _files(folder: Path) -> Iterator[Path]:
    for name in MADE:
        yield from (path for path in (folder / name).rglob("*") if path.is_file())
