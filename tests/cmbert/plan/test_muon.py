"""What a plan counts for Muon: against the built model, torch's counter of operations, exchanges one by one."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmbert.cli import main
from cmbert.cluster.distributed import Launch
from cmbert.config.load import load_recipe
from cmbert.config.parameters import count_muon_parameters, count_parameters, muon_matrices
from cmbert.config.schema import ModelConfig, OptimizerConfig
from cmbert.errors import ConfigError
from cmbert.model.cost import NEWTON_SCHULZ_STEPS, newton_schulz_flops, optimizer_bytes
from cmbert.model.heads import MaskedLanguageModel, stacked_matrices
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.describe import describe
from cmbert.plan.memory import memory_by_moment
from cmbert.plan.muon import exchange_seconds, exchanged_bytes, muon_buffer_bytes, share_matrices
from cmbert.plan.plan import make_plan
from cmbert.train.start import check_start
from cmbert.zero.muon import Exchange, matrices_of

LARGE = Path(__file__).parents[3] / "recipes" / "large" / "stage1.toml"
MUON = ["optimizer.kind=muon"]
SMALL = ModelConfig(num_layers=3, hidden_size=64, num_heads=2, intermediate_size=96, vocab_size=384)
MODELS = [
    SMALL,
    dataclasses.replace(SMALL, num_layers=1, norm="layernorm"),
    dataclasses.replace(SMALL, intermediate_size=64),  # all matrices have one shape
    dataclasses.replace(SMALL, intermediate_size=32),  # narrower than wide
    ModelConfig(num_layers=28, hidden_size=1024, num_heads=16, intermediate_size=2624, vocab_size=32_768),
]
NO_LATENCY = Assumptions(hop_microseconds=1e-12)


def naive_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Return the shape of every matrix of the built model that Muon moves."""
    with torch.device("meta"):
        built = MaskedLanguageModel(model)
    found: list[tuple[int, int]] = []
    for name, module in built.named_modules():
        if isinstance(module, torch.nn.Linear) and "decoder" not in name:
            parts = {"Wqkv": 3, "Wi": 2}.get(name.rpartition(".")[2], 1)
            found += [tuple(part.shape) for part in module.weight.chunk(parts)]
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_matrices_are_those_of_the_built_model(model: ModelConfig) -> None:
    matrices = naive_matrices(model)
    assert muon_matrices(model) == matrices
    muon, adam = OptimizerConfig(kind="muon"), OptimizerConfig(kind="adamw")
    elements = sum(rows * columns for rows, columns in matrices)
    assert count_muon_parameters(model, muon) == elements
    assert count_muon_parameters(model, adam) == 0
    total = count_parameters(model).total
    assert optimizer_bytes(model, adam) == 12 * total
    assert optimizer_bytes(model, muon) == 8 * elements + 12 * (total - elements)


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8), (1, 7)])
def test_operations_are_those_that_torch_counts(shape: tuple[int, int]) -> None:
    matrix = torch.randn(min(shape), max(shape), dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = matrix @ matrix.T
            matrix = 3.4445 * matrix + (-4.775 * gram + 2.0315 * gram @ gram) @ matrix
    assert newton_schulz_flops(*shape) == counter.get_total_flops()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_gpus", [1, 2, 7, 64, 500])
def test_every_matrix_has_one_owner_and_the_load_is_balanced(model: ModelConfig, num_gpus: int) -> None:
    matrices, shares = naive_matrices(model), share_matrices(model, num_gpus)
    assert len(shares) == min(num_gpus, len(matrices))
    assert sum(share.elements for share in shares) == sum(rows * columns for rows, columns in matrices)
    work = [newton_schulz_flops(*shape) for shape in matrices]
    assert sum(share.flops for share in shares) == sum(work)
    # Nobody gets a matrix while another has less: the last one came to at most the mean.
    assert max(share.flops for share in shares) <= sum(work) / num_gpus + max(work)
    assert sorted(shares) == shares_in_a_step(model, num_gpus)


def shares_in_a_step(model: ModelConfig, num_gpus: int) -> list[tuple[int, int, int]]:
    """Return what each rank owns that owns any, by the plan of the real optimizer: operations, elements, scratch."""
    with torch.device("meta"):
        built = MaskedLanguageModel(model)
    stacked = stacked_matrices(built)
    parameters = [(number, p) for number, p in enumerate(built.parameters()) if p in stacked]
    matrices = [m for number, p in parameters for m in matrices_of(number, p.shape, stacked[p])]
    found = []
    for rank in range(num_gpus):
        exchange = Exchange(matrices, [[]] * num_gpus, rank, torch.device("meta"))
        owned = [matrices[number] for number in exchange.owned]
        if owned:
            elements = sum(matrix.size for matrix in owned)
            batches = exchange.batches(torch.empty(elements, device="meta"))
            scratch = max(2 * batch.numel() + 2 * len(batch) * min(batch.shape[1:]) ** 2 for batch in batches)
            found.append((sum(matrix.flops for matrix in owned), elements, scratch))
    return sorted(found)


@pytest.mark.parametrize("num_gpus", [1, 2, 8, 24])
def test_the_exchange_is_what_travels_between_gpus(num_gpus: int) -> None:
    """Every element of every matrix goes from a GPU that has it to its owner and back, 2 bytes each way."""
    recipe = load_recipe(LARGE, [*MUON, *(f"model.{k}={v}" for k, v in dataclasses.asdict(SMALL).items() if k in (
        "num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size"))])  # fmt: skip
    shares = share_matrices(recipe.model, num_gpus)
    sent, by_network = [0.0] * num_gpus, [0.0] * num_gpus
    received = [0.0] * num_gpus
    generator = random.Random(0)
    for owner, share in enumerate(shares):
        for _ in range(share.elements):
            holder = generator.randrange(num_gpus)
            if holder != owner:
                sent[holder] += 2
                received[owner] += 2
                by_network[owner] += 2 * (holder // 8 != owner // 8)
    both_ways = max(there + back for there, back in zip(sent, received, strict=True))
    assert exchanged_bytes(recipe, num_gpus) == pytest.approx(both_ways, rel=0.05)
    slowest = max(
        (total - network) / 450e9 + network / 50e9 for total, network in zip(received, by_network, strict=True)
    )
    assert exchange_seconds(recipe, num_gpus, NO_LATENCY) == pytest.approx(2 * slowest, rel=0.05)
    hops = {1: 0, 2: 1, 8: 7, 24: 7 + 2}[num_gpus]
    with_hops = exchange_seconds(recipe, num_gpus, Assumptions()) - exchange_seconds(recipe, num_gpus, NO_LATENCY)
    assert with_hops == pytest.approx(2 * hops * 10e-6)


def test_large_at_five_million_tokens_a_step() -> None:
    """The goal: under 2 % of the operations; and of the estimated time."""
    plan = make_plan(load_recipe(LARGE, MUON), 64)
    assert plan.step_tokens == pytest.approx(5.05e6, rel=0.01)
    muon = plan.muon
    assert muon is not None
    assert muon.flops_share < 0.02
    assert muon.slowest_flops * 64 / (plan.training_flops / plan.num_steps) < 0.02  # on the GPU that owns most
    assert muon.step_share < 0.02
    before = make_plan(load_recipe(LARGE), 64)
    assert before.muon is None
    point, old = (next(p for p in found.scaling.points if p.num_gpus == 64) for found in (plan, before))
    assert point.compute_seconds - old.compute_seconds == pytest.approx(muon.compute_seconds)
    assert point.communication_seconds - old.communication_seconds == pytest.approx(muon.exchange_seconds)
    assert before.checkpoint_bytes - plan.checkpoint_bytes == 4 * muon.parameters


def test_long_form_and_json_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", str(LARGE), "--gpus", "64", "--set", *MUON]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert "Muon moves 344,195,072 parameters, 197 matrices" in text
    assert "every GPU owns some" in text
    assert max(map(len, text.partition("\n\nNote:")[0].splitlines())) <= 120
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["muon"]["num_matrices"] == 28 * 7 + 1
    assert "Muon" not in describe(make_plan(load_recipe(LARGE), 64))
    assert "197 GPUs own one each" in describe(make_plan(load_recipe(LARGE, MUON), 224))


def test_memory_has_one_moment_less_and_the_buffers_of_a_step() -> None:
    bf16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    recipe = load_recipe(LARGE, MUON)
    moved = count_muon_parameters(recipe.model, recipe.optimizer)
    for stage in (1, 2, 3):
        for num_gpus in (1, 64):
            adam, muon = (
                {found.moment: found for found in memory_by_moment(each, bf16, stage, num_gpus)}
                for each in (load_recipe(LARGE), recipe)
            )
            for moment, found in muon.items():
                less = adam[moment].optimizer_bytes - found.optimizer_bytes
                assert less == pytest.approx(4 * moved / num_gpus, abs=2)
            assert muon["optimizer"].buffers_bytes >= round(muon_buffer_bytes(recipe, num_gpus))
    # One GPU owns everything: what is sent, and the matrices that it is put together to, 2 bytes each.
    assert muon_buffer_bytes(recipe, 1) == 2 * 2 * moved
    assert muon_buffer_bytes(load_recipe(LARGE), 1) == 0


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer"),
        ({"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}, "offload_optimizer"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, "offload_param"),
        ({"stage": 1, "cpu_offload": True}, "cpu_offload"),
        ({"stage": 3, "cpu_offload_param": True}, "cpu_offload_param"),
        ({"stage": 2, "zenflow": {}}, "zenflow"),
    ],
)
def test_muon_with_anything_offloaded_is_refused(recipe_file: Path, tmp_path: Path, section: dict, key: str) -> None:
    file = tmp_path / "offload.json"
    file.write_text(json.dumps({"zero_optimization": section}), encoding="utf-8")
    recipe = load_recipe(recipe_file, [*MUON, f"train.deepspeed={file}"])
    message = rf"^{file}: zero_optimization.{key}: optimizer.kind muon cannot .*set optimizer.kind to stable_adamw$"
    with pytest.raises(ConfigError, match=message):
        make_plan(recipe, 2)
    with pytest.raises(ConfigError, match=message):
        check_start(recipe, "auto", Launch(rank=0, world_size=1, local_rank=0, address="n1", port=1))
    make_plan(load_recipe(recipe_file, [f"train.deepspeed={file}"]), 2)  # another optimizer takes it


def test_muon_where_nothing_is_offloaded_is_taken(recipe_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "none.json"
    section = {"stage": 3, "offload_optimizer": {"device": "none"}, "offload_param": {}, "cpu_offload": False}
    file.write_text(json.dumps({"zero_optimization": section}), encoding="utf-8")
    assert make_plan(load_recipe(recipe_file, [*MUON, f"train.deepspeed={file}"]), 2).muon is not None
