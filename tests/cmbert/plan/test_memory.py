"""What the plan says a GPU holds, against training steps under DeepSpeed on CPU ranks at every ZeRO stage."""

import json
import os
import sys
from pathlib import Path

import pytest

from cmbert.config.deepspeed import load_deepspeed_file
from cmbert.config.load import load_recipe
from cmbert.model.loss import CHUNK_BYTES, CPU_CHUNK_BYTES
from cmbert.plan.memory import LOSS_CHUNK_BYTES, memory_by_moment, peak_memory
from tests import forking
from tests.cmbert.plan import zero_memory
from tests.integration.launching import torchrun

TOLERANCE = 0.1  # of each phase, and so of the peak of the step
# 29M parameters, so that tensors and not the allocator's odds and ends are compared. LayerNorm keeps on a CPU what both
# norms keep on a GPU. The bucket is small enough to be filled several times.
RECIPE = """
run_directory = "nowhere/run"
[model]
num_layers = 4
hidden_size = 512
num_heads = 8
intermediate_size = 1312
vocab_size = 32768
norm = "layernorm"
[data]
tokenizer = "nowhere/tokenizer"
context_tokens = 128
[[data.sources]]
path = "nowhere/shards"
[schedule]
lr_max = 1e-3
lr_min = 1e-4
[train]
total_tokens = 81920
rows_per_step = 8
micro_batch_rows = 2
"""
SMALL = "model.hidden_size=128:model.num_heads=2:model.intermediate_size=256:model.vocab_size=8192"  # quickstart's
SMALL += ":data.context_tokens=256"
MOMENTS = {"forward": ("loss",), "backward": ("backward", "embedding", "reduction"), "step": ("optimizer",)}


def test_loss_chunk_is_the_losss() -> None:
    assert 2 * CHUNK_BYTES == LOSS_CHUNK_BYTES


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (
            1,
            [
                "1:train.micro_batch_rows=8:data.context_tokens=256",
                *(f"1:train.micro_batch_rows={rows}:{SMALL}" for rows in (1, 2, 4)),
                f"1:train.micro_batch_rows=4:{SMALL}:optimizer.kind=muon",
                "1:train.micro_batch_rows=1:train.rows_per_step=1:optimizer.kind=muon",
            ],
        ),
        pytest.param(  # 3 comes last: it leaves torch changed
            2,
            ["1", "1:train.micro_batch_rows=4:kernels.activation_checkpoint_fraction=1", "2", "3"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_memory_is_what_deepspeed_holds(tmp_path: Path, ranks: int, cases: list[str]) -> None:
    recipe_file, output = tmp_path / "recipe.toml", tmp_path / "found.json"
    recipe_file.write_text(RECIPE, encoding="utf-8")
    for stage in (1, 2, 3):
        table = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, "reduce_bucket_size": 20_000_000}}
        (tmp_path / f"zero{stage}.json").write_text(json.dumps(table), encoding="utf-8")
    command = [sys.executable, *torchrun(ranks), zero_memory.__file__, str(recipe_file), str(output), *cases]
    done = forking.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0, done.stderr
    everyone = json.loads(output.read_text(encoding="utf-8"))
    faults = []
    for case in cases:
        fullest = {phase: max(rank[case][phase] for rank in everyone) for phase in MOMENTS}
        faults += compare(recipe_file, case, ranks, fullest)
    assert not faults, "\n".join(faults)


def compare(recipe_file: Path, case: str, ranks: int, held: dict[str, int]) -> list[str]:
    """Return the phases of a case in which the plan is too far from what was held."""
    stage, *overrides = case.split(":")
    recipe = load_recipe(recipe_file, overrides)
    table = load_deepspeed_file(recipe_file.with_name(f"zero{stage}.json"))
    moments = memory_by_moment(recipe, table, int(stage), ranks, 2 * CPU_CHUNK_BYTES)
    estimates = {moment.moment: moment.total_bytes for moment in moments}
    assert set(estimates) == {name for names in MOMENTS.values() for name in names}
    faults = []
    for phase, names in MOMENTS.items():
        estimate, found = max(estimates[name] for name in names), held[phase]
        line = f"{ranks} ranks, ZeRO {case}, {phase}: held {found / 1e6:.1f} MB, plan {estimate / 1e6:.1f} MB"
        print(line)
        faults += [line] if estimate != pytest.approx(found, rel=TOLERANCE) else []
    return faults


def test_memory_by_hand(tmp_path: Path) -> None:
    """Large on 4 GPUs, ZeRO 2, accumulating: 2 + 2/4 + 12/4 bytes a parameter, a bucket, the embedding's gradient."""
    recipe_file = Path(__file__).parents[3] / "recipes" / "large" / "stage1.toml"
    recipe = load_recipe(recipe_file, ["kernels.activation_checkpoint_fraction=1", "train.micro_batch_rows=1"])
    table = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2, "reduce_bucket_size": 1_000}}
    backward = next(m for m in memory_by_moment(recipe, table, 2, 4) if m.moment == "backward")
    parameters, embedding = 377_841_664, 32_768 * 1024
    assert backward.weights_bytes == 2 * parameters
    assert backward.gradients_bytes == parameters // 2
    assert backward.optimizer_bytes == 3 * parameters
    assert backward.buffers_bytes == 2 * embedding + 2_000
    # 28 layers' inputs, one layer anew, 4 x width around; 30 % of the positions 5 x width in the head.
    values = 28 * 1024 + 8 * 1024 + 3 * 2624 + 4 * 1024 + 0.3 * 5 * 1024
    assert backward.activations_bytes == pytest.approx(2 * 1024 * values)
    offloaded = {**table, "zero_optimization": {**table["zero_optimization"], "offload_optimizer": {"device": "cpu"}}}
    assert peak_memory(recipe, offloaded, 2, 4).optimizer_bytes == 0


def test_activations_of_a_small_model_grow_with_the_micro_batch(tmp_path: Path) -> None:
    """The loss's fp32 logits are no more than the positions have, on a GPU, too; what is summed in fp32 is no floor."""
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(RECIPE, encoding="utf-8")
    table = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    for moment in ("loss", "backward"):
        held = []
        for rows in (1, 2, 4):
            recipe = load_recipe(recipe_file, [*SMALL.split(":"), f"train.micro_batch_rows={rows}"])
            held.append(next(m for m in memory_by_moment(recipe, table, 1, 1) if m.moment == moment).total_bytes)
        assert held == sorted(held)
    masked = int(256 * recipe.mask.peak_rate)
    small = load_recipe(recipe_file, [*SMALL.split(":"), "train.micro_batch_rows=1"])
    loss = next(m for m in memory_by_moment(small, table, 1, 1) if m.moment == "loss")
    assert loss.buffers_bytes - 2 * 500_000_000 < (2 * 4 + 2 + 1) * masked * 8192


def test_more_gpus_and_higher_stages_never_need_more(tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(recipe_file, ["train.rows_per_step=64", "train.micro_batch_rows=1"])
    table = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    for stage in (1, 2, 3):
        held = [peak_memory(recipe, table, stage, num_gpus).total_bytes for num_gpus in (1, 2, 4, 8, 16, 32)]
        assert held == sorted(held, reverse=True)
    optimizer = [peak_memory(recipe, table, stage, 32).optimizer_bytes for stage in (1, 2, 3)]
    assert len(set(optimizer)) == 1
