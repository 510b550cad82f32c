"""`cmbert bench inference|train`: what is timed, what is counted, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cmbert.bench import throughput
from cmbert.bench.throughput import make_batch, our_runner, their_runner, workloads
from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.memory import PeakMemory
from cmbert.model.cost import count_batch_flops
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise

CPU = torch.device("cpu")
MEGABYTE = 1_000_000


@pytest.mark.parametrize("work", ["inference", "train"])
def test_rows_of_us_and_the_peer(
    work: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.01)
    arguments = ["--model", str(recipe_file), "--lengths", "64", "--segments", "5,40,19", "--batch-tokens", "256"]
    assert main(["bench", work, *arguments, "--against", "hf", "--json"]) == 0
    rows = json.loads((tmp_path / "runs" / "bench" / f"{work}.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("[\n") :]) == rows  # after the log
    assert [row["peer"] for row in rows] == ["transformers sdpa", "cmbert"] * 3
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert theirs["work"] == ours["work"]
        assert theirs["tokens"] == ours["tokens"]
        assert ours["ratio"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"], rel=0.02)
        assert 0 < ours["mfu"] <= 1
        assert {"hardware", "torch", "peak", "run_memory_mb"} <= ours.keys()
    assert [row["tokens"] for row in rows[1::2]][:2] == [64, 256]
    model = load_recipe(recipe_file).model
    given = rows[1]
    flops = count_batch_flops(model, [5, 40, 19], round(0.3 * 64), training=work == "train")
    rate = given["mfu"] * given["peak_tflops"] * 1e12 / flops * 64  # tokens per second that the MFU stands for
    assert rate == pytest.approx(
        given["tokens_per_second"], rel=0.1, abs=0.001 * 1e12 * given["peak_tflops"] / flops * 64
    )


@pytest.mark.parametrize("work", ["inference", "train"])
def test_alternating_beside_all_global_attention(
    work: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.01)
    arguments = ["--model", str(recipe_file), "--lengths", "64,512", "--batch-tokens", "512", "--against", "all-global"]
    assert main(["bench", work, *arguments]) == 0
    rows = json.loads((tmp_path / "runs" / "bench" / f"{work}.json").read_text(encoding="utf-8"))
    assert [row["peer"] for row in rows] == ["cmbert all-global", "cmbert"] * 4
    model = load_recipe(recipe_file).model
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert (theirs["work"], theirs["tokens"], theirs["segments"]) == (
            ours["work"],
            ours["tokens"],
            ours["segments"],
        )
        assert ours["ratio"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"], rel=0.02)
    lengths = [512]  # "fixed 512": the operations that each MFU stands for are those of its own attention
    flops = [
        count_batch_flops(replace(model, global_every=every), lengths, round(0.3 * 512), training=work == "train")
        for every in (1, model.global_every)
    ]
    measured = [row["mfu"] / row["tokens_per_second"] for row in rows[4:6]]
    assert measured[0] / measured[1] == pytest.approx(flops[0] / flops[1], rel=0.03)
    assert flops[0] > 1.1 * flops[1]
    capsys.readouterr()
    assert main(["bench", work, *arguments, "--set", "model.global_every=1"]) == 2
    assert "model.global_every is 1 already" in capsys.readouterr().err


def test_the_peer_attends_globally_in_every_layer(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, built = load_recipe(recipe_file), []
    monkeypatch.setattr(throughput, "make_runner", lambda work, model, *others: built.append(model))
    throughput.open_contestants("inference", recipe.model, recipe.kernels, "all-global", CPU)
    ours, theirs = ([layer.is_global for layer in model.model.layers] for model in built)
    assert ours == [True, False, False]
    assert theirs == [True, True, True]


ONLY_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"pretended to be absent: {name}", name=name)
sys.meta_path.insert(0, Absent())
from cmbert.cli import main
sys.exit(main(sys.argv[1:]))
"""
OTHERS = ("deepspeed", "flash_attn", "numba", "jieba", "rjieba", "tokenizers", "safetensors", "tomli_w", "transformers")


def test_torch_alone_is_enough(recipe_file: Path, tmp_path: Path) -> None:
    program = ONLY_TORCH.replace("{packages}", repr(OTHERS))
    arguments = ["bench", "train", "--model", str(recipe_file), "--lengths", "64", "--batch-tokens", "256"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peer cmbert tokens_per_second" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--against", "hf"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--against hf: transformers is not installed" in done.stderr


def test_workloads_hold_about_the_tokens_asked_for_and_are_the_same_each_time() -> None:
    loads = workloads([512, 8192], [7, 9], 65_536, 8192)
    assert [load.name for load in loads] == [
        "given 2 segments", "fixed 512", "variable to 512", "fixed 8192", "variable to 8192",
    ]  # fmt: skip
    assert loads == workloads([512, 8192], [7, 9], 65_536, 8192)
    for load in loads[1:]:
        assert sum(load.lengths) == pytest.approx(65_536, rel=0.15)
        assert max(load.lengths) <= (512 if "512" in load.name else 8192)
    assert len(set(loads[2].lengths)) > 50


def test_both_read_the_same_tokens_and_predict_the_same() -> None:
    batch = make_batch([3, 9, 1], 64, CPU)
    real = batch.attention_mask.bool()
    assert real.sum(1).tolist() == [3, 9, 1]
    assert torch.equal(batch.padded_ids[real], batch.input_ids)
    assert batch.cu_seqlens.tolist() == [0, 3, 12, 13]
    labels = batch.labels[real]
    assert (labels >= 0).nonzero().flatten().tolist() == batch.masked_positions.tolist()
    assert torch.equal(labels[batch.masked_positions], batch.targets)


def test_a_training_run_trains(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[throughput.MixedPrecision] = []

    class Watched(throughput.MixedPrecision):
        def __init__(self, model: torch.nn.Module, learning_rate: float):
            super().__init__(model, learning_rate)
            made.append(self)

    monkeypatch.setattr(throughput, "MixedPrecision", Watched)
    recipe = load_recipe(recipe_file)
    batch = make_batch([30, 34], recipe.model.vocab_size, CPU)
    runners = (
        our_runner("train", recipe.model, recipe.kernels, CPU),
        their_runner("train", recipe.model, "sdpa", CPU),
    )
    for runner, optimizer in zip(runners, made, strict=True):
        weights = optimizer.weights
        before = [parameter.detach().clone() for parameter in weights]
        run = runner(batch)
        for _ in range(3):
            run()
        moved = [not torch.equal(*pair) for pair in zip(before, weights, strict=True)]
        assert sum(moved) > 0.5 * len(moved)  # steps of 1e-5 do not always reach the next bf16 number


def test_the_peer_is_the_same_network(recipe_file: Path) -> None:
    from transformers import ModernBertForMaskedLM

    from cmbert.export.hf import modernbert_config

    recipe = load_recipe(recipe_file, ["model.norm=layernorm"])
    ours = MaskedLanguageModel(recipe.model)
    initialise(ours, 0)
    theirs = ModernBertForMaskedLM(modernbert_config(recipe.model))
    theirs.load_state_dict(ours.state_dict())
    batch = make_batch([200, 31], recipe.model.vocab_size, CPU)
    logits = theirs(input_ids=batch.padded_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(
        ours.logits(batch.input_ids, batch.cu_seqlens), logits[batch.attention_mask.bool()], rtol=1e-4, atol=1e-4
    )


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    with PeakMemory(CPU) as peak:
        torch.ones(50 * MEGABYTE)
    assert peak.bytes == pytest.approx(200 * MEGABYTE, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "9000"], "9000 must lie between 1 and the model's max_length 8192"),
        (["--segments", "8193"], "8193 must lie between 1"),
        (["--set", "kernels.attention=flash_attn"], "kernels.attention: 'flash_attn' cannot run on cpu"),
        (["--set", "kernels.atention=cpu"], "did you mean 'attention'"),
    ],
)
def test_mistakes_are_one_line(
    recipe_file: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "train", "--model", str(recipe_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert main(["bench", "train", "--model", "nowhere.toml"]) == 2
    assert "nowhere.toml: no such recipe" in capsys.readouterr().err


def test_lengths_must_be_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "train", "--lengths", "long"])
    assert left.value.code == 2
    assert (
        "--lengths: long: must be whole numbers from 1 to 16777216 with commas, for example 512,8192"
        in capsys.readouterr().err
    )
