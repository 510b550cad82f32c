"""The plan: closed forms against the built model, ZeRO's partitions, what is not there yet, and what it refuses."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from cmbert.cli import main
from cmbert.commands.plan import PLAN_ASSUMPTIONS
from cmbert.config.load import load_recipe
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import MaskConfig, ModelConfig, ScheduleConfig
from cmbert.data.shards.manifest import MANIFEST_FILE
from cmbert.errors import ConfigError
from cmbert.model import encoder
from cmbert.model.cost import count_batch_flops, count_flops, estimate_activations, keys_seen
from cmbert.model.heads import MaskedLanguageModel
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.cleaning import BANDED_BYTES, BANDS, GROUP_BYTES, ROW_BYTES
from cmbert.plan.describe import describe
from cmbert.plan.page import write_plan_page
from cmbert.plan.plan import make_plan, mean_mask_rate
from cmbert.plan.short import print_plan
from cmbert.schedule import RampStage, Schedule
from cmbert.tokenizer import Tokenizer
from data_tools.clean.config import DuplicatesConfig
from data_tools.clean.duplicates.clusters import BYTES_PER_DOCUMENT
from data_tools.clean.duplicates.signatures import signature_bytes
from data_tools.clean.texts import ROW
from tests.cmbert.fused import FUSED

LARGE = ModelConfig(num_layers=28, hidden_size=1024, num_heads=16, intermediate_size=2624, vocab_size=32_768)
LARGE_RECIPE = Path(__file__).parents[3] / "recipes" / "large" / "stage1.toml"
SMALL = ModelConfig(num_layers=3, hidden_size=64, num_heads=2, intermediate_size=96, vocab_size=384)


@pytest.mark.parametrize(
    "model",
    [
        LARGE,
        SMALL,
        dataclasses.replace(SMALL, norm="layernorm", num_layers=1),
        dataclasses.replace(SMALL, global_every=1, num_layers=7, hidden_size=96, num_heads=3),
    ],
)
def test_parameters_are_those_of_the_built_model(model: ModelConfig) -> None:
    with torch.device("meta"):
        built = MaskedLanguageModel(model)
    parts = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for name, parameter in built.named_parameters():
        marks = {
            "tok_embeddings": "embedding",
            "attn.W": "attention",
            "mlp.W": "mlp",
            "head.": "head",
            "decoder": "head",
        }
        part = next((part for mark, part in marks.items() if mark in name), "norms")
        parts[part] += parameter.numel()
    counted = dataclasses.asdict(count_parameters(model))
    assert {part: counted[part] for part in parts} == parts
    assert counted["total"] == sum(parts.values())


def test_the_papers_figures() -> None:
    """377M parameters, 754 MB in bf16 and 9.0 % embeddings: the released vocabulary, without the prediction head."""
    released = count_parameters(dataclasses.replace(LARGE, vocab_size=32_979))
    encoder_parameters = released.total - released.head
    assert round(encoder_parameters / 1e6) == 377
    assert round(2 * encoder_parameters / 1e6) == 754
    assert round(released.embedding / encoder_parameters, 3) == 0.090


def test_flops_against_the_papers_arithmetic() -> None:
    long, short = count_flops(LARGE, 8192, 0.15), count_flops(LARGE, 512, 0.15)
    found = (long.linear, long.global_attention, long.local_attention, long.forward, short.forward)
    assert [round(value / 1e9, 3) for value in found] == [0.686, 0.336, 0.009, 1.031, 0.716]
    all_global = count_flops(dataclasses.replace(LARGE, global_every=1), 8192, 0.15)
    assert round(all_global.forward / 1e9, 2) == 1.63
    assert long.training == pytest.approx(3 * (long.forward + 0.15 * 2 * 1024 * (1024 + 32_768)))


def test_flops_of_a_batch_worked_by_hand() -> None:
    model = ModelConfig(
        num_layers=3, hidden_size=4, num_heads=1, intermediate_size=8, vocab_size=64, local_window=4, global_every=3
    )
    # A layer's matrices: 4 x 4 x 4 of attention, 3 x 4 x 8 of the GeGLU = 160; 3 layers, 9 tokens, 2 operations each.
    linear = 2 * 9 * 3 * 160
    # One global layer: 3^2 + 6^2 pairs. Two local ones, 2 tokens to each side: all 9, and 3 + 4 + 5 + 5 + 4 + 3.
    # A pair costs a product of width 4 for the score and one for the sum, 2 operations each.
    attention = 16 * (45 + 2 * (9 + 24))
    assert count_batch_flops(model, [3, 6], 0, training=False) == linear + attention == 10_416
    # The head at 2 masked tokens: 4 x 4 dense, 4 x 64 decoder. The backward pass costs twice the forward pass.
    head = 2 * 2 * (16 + 256)
    assert count_batch_flops(model, [3, 6], 2, training=True) == pytest.approx(3 * (10_416 + head))
    counted = count_batch_flops(model, {3: 2, 6: 1}, 2, training=True)
    assert counted == count_batch_flops(model, [3, 6, 3], 2, training=True) > 3 * (10_416 + head)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7, 300])
@pytest.mark.parametrize("side", [-1, 1, 3, 64])
def test_keys_seen_are_those_of_the_mask(length: int, side: int) -> None:
    position = torch.arange(length)
    distance = (position - position[:, None]).abs()
    assert keys_seen(length, side) == ((distance <= side) | (side < 0)).sum()


def test_mean_mask_rate_is_the_mean_of_the_schedule() -> None:
    mask = MaskConfig(start_rate=0.1, peak_rate=0.4, end_rate=0.2, warmup_tokens=3_000)
    schedule = Schedule(1, 10_000, (RampStage(0, 0, 1),), ScheduleConfig(lr_max=1.0, lr_min=0.1), mask)
    sampled = sum(map(schedule.mask_rate_at, range(10_000))) / 10_000
    assert mean_mask_rate(mask, 10_000) == pytest.approx(sampled, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_the_activation_estimate_is_what_autograd_keeps(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, compile: bool, share: float
) -> None:
    if compile and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    sizes = ["model.hidden_size=128", "model.intermediate_size=320", "model.num_layers=8"]
    kernels = [f"kernels.compile={str(compile).lower()}", f"kernels.activation_checkpoint_fraction={share}"]
    recipe = load_recipe(recipe_file, [*sizes, *kernels])
    # LayerNorm keeps on a CPU what both norms keep on a GPU; the CPU's RMSNorm is not fused.
    model = MaskedLanguageModel(dataclasses.replace(recipe.model, norm="layernorm"), recipe.kernels).bfloat16()
    monkeypatch.setattr(encoder, "attention_backend", lambda device, dtype, requested: FUSED)
    num_tokens = 2 * recipe.data.context_tokens
    num_masked = int(num_tokens * recipe.mask.peak_rate)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, bounds = torch.zeros(num_tokens, dtype=torch.int64), torch.tensor([0, num_tokens], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.head(model.model(ids, bounds)[:num_masked])
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits = model.decoder(hidden).nbytes  # held until the loss is known, as its gradient
    layer = (8 * 128 + (3 if compile else 4) * 320) * 2 * num_tokens
    recomputed = layer if share == 1.0 else 0  # a layer that the backward pass computes again, one at a time
    estimate = estimate_activations(recipe.model, recipe.kernels, num_tokens, num_masked, 2)
    assert estimate.logits == pytest.approx(logits, rel=0.02)  # whole positions
    assert estimate.kept == pytest.approx(found + recomputed, rel=0.1)


def test_plan_of_data_that_is_there(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(recipe_file)
    plan = make_plan(recipe, 2)
    (source,) = plan.sources
    assert (plan.num_steps, plan.step_tokens, plan.accumulation, plan.notes) == (16, 512, 2, ())
    assert source.rows is not None
    assert source.epochs == pytest.approx(16 * 8 / source.rows)
    directory = Path(source.path)
    files = [path for path in directory.iterdir() if path.name != MANIFEST_FILE]
    assert plan.data.shards_measured
    assert plan.data.shards_bytes == source.bytes == sum(path.stat().st_size for path in files)
    assert [point.percent for point in plan.schedule[::20]] == [*range(0, 101, 10)]
    assert plan.schedule[-1].learning_rate == pytest.approx(recipe.schedule.lr_min)
    print_plan(plan, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(dataclasses.asdict(plan)))
    print_plan(plan, as_json=False)
    text = capsys.readouterr().out
    assert text == describe(plan) + "\n"
    assert f"{plan.parameters.total:,}" in text
    assert "estimate" in text
    assert "assuming 33% of 989 TFLOP/s" in text


def test_what_is_not_there_yet_is_a_note(recipe_file: Path, tmp_path: Path) -> None:
    missing = ["data.tokenizer=nowhere/tokenizer", "train.init_from=nowhere/stage1"]
    plan = make_plan(load_recipe(recipe_file, missing), 2)
    tokenizer, first_stage = plan.notes
    assert tokenizer.startswith("nowhere/tokenizer: not there yet: data_tools train-tokenizer --vocab-size 384")
    assert first_stage.startswith("nowhere/stage1: no checkpoint yet")
    assert plan.sources[0].tokens is not None
    assert plan.sources[0].rows is None

    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text + f'[[data.sources]]\npath = "{tmp_path}/more"\n', encoding="utf-8")
    plan = make_plan(load_recipe(recipe_file), 2)
    assert [note.split(" --tokenizer")[0] for note in plan.notes] == [
        f"{tmp_path}/more: not there yet: data_tools preprocess"
    ]
    first, second = plan.sources
    assert first.rows is not None
    assert (first.epochs, second.tokens, second.bytes) == (None, None, None)
    assert plan.data.shards_bytes == 8192 * 2.125


def test_disk_text_and_ledger(recipe_file: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = make_plan(load_recipe(recipe_file), 2)
    (source,) = plan.sources
    assert source.documents == 600
    assert plan.data.document_tokens_measured
    assert source.tokens is not None
    assert plan.data.document_tokens == source.tokens / 600
    segments = 8192 / min(source.tokens / 600, 64)
    assert plan.data.ledger_segments == pytest.approx(segments)
    assert plan.data.ledger_bytes == pytest.approx((1.3 * segments, 3.3 * segments))
    assert not plan.data.text_bytes_measured  # the fixture's manifest has no totals
    assert plan.data.text_bytes == 8192 * 4.5
    manifest = json.loads((Path(source.path) / MANIFEST_FILE).read_text(encoding="utf-8"))
    copied = shutil.copytree(source.path, tmp_path / "copied")
    manifest["totals"] = {"text_bytes": 74_000_000}
    (copied / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    text = recipe_file.read_text(encoding="utf-8").replace(source.path, str(copied))
    recipe_file.write_text(text, encoding="utf-8")
    measured = make_plan(load_recipe(recipe_file), 2)
    assert measured.data.text_bytes_measured
    assert measured.data.text_bytes_per_token == 74_000_000 / source.tokens
    assert measured.data.preprocess_core_hours == pytest.approx(10 / 3600)
    clean = measured.data.clean
    assert clean.raw_bytes == pytest.approx(74_000_000 / 0.9)
    assert clean.documents == pytest.approx(600 / 0.7)
    assert clean.core_hours == pytest.approx(clean.raw_bytes / 3.6e9 / measured.assumptions.clean_mb_per_second)
    assert clean.work_bytes == pytest.approx(0.35 * clean.raw_bytes + 198 * clean.documents)
    assert clean.output_bytes == pytest.approx(0.25 * 74_000_000)
    assert clean.cluster_bytes == pytest.approx(5 * clean.documents)


def test_cleaning_is_counted_as_clean_does_it() -> None:
    assert signature_bytes(DuplicatesConfig()) == BANDS * BANDED_BYTES
    assert (ROW.itemsize, BYTES_PER_DOCUMENT) == (ROW_BYTES, GROUP_BYTES)


def test_text_is_narrow_and_names_its_assumptions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe(LARGE_RECIPE)
    text = describe(make_plan(recipe, 56, Assumptions(mfu=0.4, bandwidth_gbits=200)))
    assert max(map(len, text.partition("\n\nNote:")[0].splitlines())) <= 120
    for figure in (
        "assuming 40% of 989",
        "200 Gbit/s",
        "6,335 hours",
        "90% of 80",
        "7.4 MB/s",
        "if 90% of it stays",
        "not measured",
    ):
        assert figure in text


def test_page(recipe_file: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(recipe_file), 2)
    write_plan_page(plan, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    for title in ("Learning rate", "Mask rate", "Batch", "Memory by ZeRO stage", "Efficiency"):
        assert title in page
    assert "Time lost" not in page  # the stage is over before a failure is worth a checkpoint
    assert plan.failures.needless in page
    write_plan_page(make_plan(load_recipe(LARGE_RECIPE), 56), tmp_path / "large.html")
    large = (tmp_path / "large.html").read_text(encoding="utf-8")
    assert large.count("<svg") == 7
    assert "Time lost" in large
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    write_plan_page(plan, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    with pytest.raises(ConfigError, match=r"--page: .* is a folder"):
        write_plan_page(plan, tmp_path)


def test_command_line(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    assert main(["plan", str(recipe_file), "--gpus", "2", "--json", "--mfu", "0.5", "--page", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["assumptions"]["mfu"] == 0.5
    assert found["assumptions"]["gpu_memory_gb"] == 80
    assert {"memory_table", "scaling", "failures", "data", "schedule"} <= found.keys()
    assert page.is_file()
    assert main(["plan", str(recipe_file), "--gpus", "2", "--gpu-memory-gb", "0.001"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for wrong in (["--mfu", "1.5"], ["--mfu", "0"], ["--bandwidth-gbits", "-1"], ["--node-mtbf-hours", "nan"]):
        with pytest.raises(SystemExit):
            main(["plan", str(recipe_file), *wrong])


def test_defaults_in_the_help_are_the_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, _ in PLAN_ASSUMPTIONS:
        default = re.search(rf"--{name.replace('_', '-')} X [^(]*\(default ([^)]*)\)", said)
        assert default, name
        assert float(default[1]) == pytest.approx(getattr(Assumptions(), name), rel=1e-3)
