"""The run whose figures are kept: made-up text, tokenizer, shards, both stages of a tiny model; fp32, one process.

    python -m tests.golden.golden_run

writes tests/golden/trace.json anew. Do that only when a change of what is learnt is meant, and say why in its commit.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbert.data.shards.shard_set import ShardSet
from cmbert.runs.metrics import read_metrics
from cmbert.tokenizer import load_tokenizer
from data_tools.preprocessing.preprocess import preprocess
from data_tools.runner import local_workers
from data_tools.tokenizer.training import train_tokenizer
from tests import forking

TRACE = Path(__file__).with_name("trace.json")
ROOT = Path(__file__).parents[2]
WORDS_TEXT = """
今天 天气 很好 我们 一起 去 公园 散步 他 在 北京 大学 学习 计算机 科学 每天 读 很多
书 这家 酒店 的 服务 态度 非常 好 房间 也 很 干净 人民 日报 报道 经济 保持 了
平稳 增长 改革 继续 推进 价格 是 元 上海 图书馆 开放 时间 电影 音乐
"""
WORDS = WORDS_TEXT.split()
NUM_DOCUMENTS, VOCAB_SIZE = 300, 512
STAGES = ("stage1", "stage2", "muon")
STAGE1 = f"""
run_directory = "stage1"
[model]
num_layers = 4
hidden_size = 32
num_heads = 2
intermediate_size = 48
vocab_size = {VOCAB_SIZE}
local_window = 16
rope_base_global = 10000.0
init_std = 0.08
[data]
tokenizer = "tokenizer"
context_tokens = 64
shuffle_block_rows = 16
shuffle_blocks = 2
[[data.sources]]
path = "shards"
[mask]
warmup_tokens = 2048
[schedule]
lr_max = 3e-3
lr_min = 3e-4
warmup_tokens = 2048
num_cycles = 2
gamma = 0.3
[train]
total_tokens = 12288
rows_per_step = 8
micro_batch_rows = 4
deepspeed = "zero1.json"
"""
STAGE2 = """
extends = "stage1.toml"
run_directory = "stage2"
[model]
rope_base_global = 80000.0
[data]
context_tokens = 256
[mask]
peak_rate = 0.15
warmup_tokens = 0
[schedule]
lr_max = 1e-3
lr_min = 3e-4
warmup_tokens = 0
[train]
total_tokens = 4096
rows_per_step = 2
micro_batch_rows = 1
init_from = "stage1"
"""
MUON = """
extends = "stage1.toml"
run_directory = "muon"
[optimizer]
kind = "muon"
weight_decay = 0.1
"""


def make_inputs(folder: Path) -> None:
    """Write text, tokenizer, shards, the DeepSpeed file and both recipes."""
    draw, lines = random.Random(0), []
    for _ in range(NUM_DOCUMENTS):
        words = [WORDS[int(draw.random() ** 2 * len(WORDS))] for _ in range(5 + int(draw.random() * 120))]
        lines.append(json.dumps({"text": "".join(words) + "。"}, ensure_ascii=False))
    text = folder / "text.jsonl"
    text.write_text("\n".join(lines), encoding="utf-8")
    train_tokenizer([str(text)], folder / "tokenizer", vocab_size=VOCAB_SIZE)
    with local_workers(1) as workers:
        preprocess([str(text)], folder / "tokenizer", folder / "shards", workers=workers)
    (folder / "zero1.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    (folder / "stage1.toml").write_text(STAGE1, encoding="utf-8")
    (folder / "stage2.toml").write_text(STAGE2, encoding="utf-8")
    (folder / "muon.toml").write_text(MUON, encoding="utf-8")


def train(folder: Path, stage: str, *, threads: int = 1, options: Sequence[str] = ()) -> list[dict[str, float]]:
    """Train a stage in a process of its own; return loss and gradient norm of every step."""
    run = next((option.partition("=")[2] for option in options if option.startswith("run_directory=")), stage)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cmbert", "train", f"{stage}.toml", *options]
    done = forking.run(command, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [{key: record[key] for key in ("loss", "grad_norm")} for record in read_metrics(folder / run)]


def trace(folder: Path, *, threads: int = 1) -> dict[str, Any]:
    """Make everything in an empty folder and return what is compared: fingerprints, then the figures of every step."""
    make_inputs(folder)
    return {
        "tokenizer": load_tokenizer(folder / "tokenizer").fingerprint,
        "shards": ShardSet(folder / "shards").fingerprint,
        **{stage: train(folder, stage, threads=threads) for stage in STAGES},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = trace(Path(folder))
    TRACE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ends = ", ".join(f"{found[stage][-1]['loss']:.4f}" for stage in STAGES)
    print(f"{TRACE.relative_to(ROOT)}: the stages end at {ends} nats")


if __name__ == "__main__":
    main()
