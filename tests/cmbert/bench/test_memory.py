"""Whether a benchmark fits is known before anything is built; what a refusal names fits; what is measured fits it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmbert import memory
from cmbert.bench import memory as bench_memory
from cmbert.bench import throughput, throughput_table
from cmbert.bench.memory import Request, Shape, bench_bytes, check_bench, check_weights
from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.config.parameters import count_parameters
from cmbert.config.schema import KernelConfig
from cmbert.errors import ConfigError

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "recipes" / "large" / "stage1.toml"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):
    """Pretend that so many GB are free."""

    def pretend(gigabytes: float) -> None:
        for module in (bench_memory, memory):
            monkeypatch.setattr(module, "free_memory_bytes", lambda device: gigabytes * 1e9)

    return pretend


def test_a_refusal_is_one_line_and_builds_nothing(
    have, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_memory, "_smaller", lambda asked: [])
    monkeypatch.chdir(ROOT)
    for work, gigabytes in (("train", 24), ("inference", 2)):
        have(gigabytes)
        assert main(["bench", work, "--against", "hf"]) == 2
        error = capsys.readouterr().err
        assert re.search(rf"bench {work}: needs about [\d.]+ GB of memory, and [\d.]+ GB are free on the CPU", error)
        assert error.endswith("fits: a smaller --model\n")
        assert error.count("\n") == 1


@pytest.mark.parametrize("gigabytes", [3, 6, 8, 12, 16, 24, 40, 64, 96])
@pytest.mark.parametrize("against", ["hf", "all-global", None])
def test_what_a_refusal_names_fits(have, gigabytes: float, against: str | None) -> None:
    recipe = load_recipe(LARGE)
    have(gigabytes)
    arguments = ("train", recipe.model, recipe.kernels)
    asked = Request(against, [512, 8192], [], 32_768)
    try:
        check_bench(*arguments, asked)
        assert gigabytes > 40
        return
    except ConfigError as error:
        named = str(error).partition("fits: ")[2]
    if named == "a smaller --model":
        assert gigabytes * 1e9 < 18 * count_parameters(recipe.model).total + 2e9  # weights and optimizer alone
        return
    batch, lengths = re.search(r"--batch-tokens (\d+)", named), re.search(r"--lengths (\d+)", named)
    fitting = Request(
        None if named.startswith("without --against") else against,
        [int(lengths[1])] if lengths else asked.contexts,
        [],
        int(batch[1]) if batch else asked.batch_tokens,
    )
    check_bench(*arguments, fitting)
    have(gigabytes / 3)
    with pytest.raises(ConfigError):
        check_bench(*arguments, fitting)


def test_what_fits_is_not_refused(recipe_file: Path, have, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.01)
    have(1)
    arguments = ["--model", str(recipe_file), "--lengths", "64", "--batch-tokens", "256", "--against", "hf"]
    assert main(["bench", "inference", *arguments]) == 0


def test_states_by_hand_and_what_costs_more() -> None:
    """bf16 weights, fp32 copy, two moments, and the fp32 gradients of one; a GPU holds no code."""
    recipe = load_recipe(LARGE)
    total = count_parameters(recipe.model).total
    ours, theirs = Shape(recipe.model, recipe.kernels), Shape(recipe.model, KernelConfig(), padded=True)
    assert bench_bytes("train", [ours], [[1]], CUDA) == 18 * total
    assert bench_bytes("train", [ours, theirs], [[1]], CUDA) == 32 * total
    assert bench_bytes("inference", [ours], [[1]], CUDA) == pytest.approx(2 * total, rel=1e-3)
    for work in ("train", "inference"):
        for device in (CPU, CUDA):
            sizes = [bench_bytes(work, [ours, theirs], [[512] * count], device) for count in (8, 16, 64)]
            assert sizes == sorted(sizes)
        padded = bench_bytes(work, [theirs], [[2048, *[16] * 7]], CUDA)
        assert padded > bench_bytes(work, [theirs], [[270] * 8], CUDA)  # as many tokens, unpadded


MEASURE = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from cmbert.bench import memory as bench_memory
from cmbert.bench import throughput
from cmbert.memory import resident_bytes
import transformers.models.modernbert.modeling_modernbert
work, recipe, against = sys.argv[1:]
model, kernels = throughput.read_shape(Path(recipe), [])
# An encoder alone holds little: more of it, beside which what any process takes (HOST_BYTES) is not half.
loads = [throughput.Workload("given", (512,) * (32 if work == "inference" else 8))]
throughput.find_peak = lambda device: (1e12, "none")
throughput.time_in_turn = lambda runs, device: ([(run(), run()) for run in runs.values()] and dict.fromkeys(runs, 1.0),
                                               dict.fromkeys(runs, 0))
before = resident_bytes("VmRSS")
list(throughput.bench_throughput(work, model, kernels, loads, against or None))
device = torch.device("cpu")
shapes = bench_memory.shapes_of(model, kernels, against or None, device)
needed = bench_memory.bench_bytes(work, shapes, [load.lengths for load in loads], device)
print(json.dumps([resident_bytes("VmHWM") - before, needed]))
"""
SIZES = """
[model]
num_layers = 4
hidden_size = 512
num_heads = 8
intermediate_size = 1344
vocab_size = 16384
"""


@pytest.mark.alone
@pytest.mark.parametrize(
    ("work", "against"),
    [
        ("train", ""),
        pytest.param("train", "hf", marks=pytest.mark.slow),
        pytest.param("inference", "hf", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_what_a_process_takes(work: str, against: str, recipe_file: Path) -> None:
    """Resident size of a process: not 15 % more than the estimate, and at least half of it."""
    text = re.sub(r"\[model\].*?(?=\n\[)", SIZES, recipe_file.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)
    recipe_file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", MEASURE, work, str(recipe_file), against]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    taken, needed = json.loads(done.stdout.splitlines()[-1])
    print(f"{work} {against}: taken {taken / 1e9:.2f} GB, estimate {needed / 1e9:.2f} GB")
    assert needed / 2 <= taken <= 1.15 * needed


def test_weights_that_do_not_fit(have, recipe_file: Path) -> None:
    have(0.2)
    with pytest.raises(
        ConfigError, match=r"--model m: needs about 0.4 GB of memory, and 0.2 GB are free on the CPU; leave it out"
    ):
        check_weights("m", 100_000_000, CPU)
    check_weights("m", 100_000_000, CUDA)
    have(1e-6)
    with pytest.raises(ConfigError, match="leave it out"):
        throughput_table.open_candidates([recipe_file], [])


def test_an_exported_folder_that_does_not_fit_is_not_read(have, tmp_path: Path) -> None:
    from cmbert.export.release import open_model
    from cmbert.model.config_json import config_json

    (tmp_path / "config.json").write_text(json.dumps(config_json(load_recipe(LARGE).model, None)), encoding="utf-8")
    have(2)
    with pytest.raises(ConfigError, match=r"opening .*: needs about 3\.0 GB of memory, and 2\.0 GB are free"):
        open_model(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("allowed", "free"), [("3000000000", 2_500_000_000), ("max", 8_000_000_000)])
def test_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, allowed: str, free: int
) -> None:
    """The limit of the group above counts; pages of files that can go do not count as used."""
    meminfo, own = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:  9000000 kB\nMemAvailable:    7812500 kB\n", encoding="ascii")
    own.write_text("3:cpu:/x\n0::/job/step\n" if version == 2 else "4:memory:/job/step\n0::/\n", encoding="ascii")
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group = tmp_path / "groups" / ("." if version == 2 else "memory") / "job"
    (group / "step").mkdir(parents=True)
    limit = allowed if version == 2 or allowed != "max" else str(2**63 - 4096)
    values = (limit, "700000000", "cache 1\ninactive_file 200000000")
    for name, value in zip((*names, "memory.stat"), values, strict=True):
        (group / name).write_text(value + "\n", encoding="ascii")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "OWN_CGROUP", own)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    assert memory.free_host_bytes() == free


def test_training_that_the_system_would_kill(recipe_file: Path, have, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmbert.cluster.distributed import Launch
    from cmbert.config.deepspeed import resolve_deepspeed
    from cmbert.train.start import check_host_memory, check_start

    monkeypatch.chdir(ROOT)
    recipe, launch = load_recipe(LARGE), Launch(0, 1, 0, "n1", 1)
    deepspeed = resolve_deepspeed(recipe, 1)
    have(24)
    message = r"training 378M parameters: needs about \d+\.\d GB of memory, and 24.0 GB .*micro_batch_rows, of which 44"
    with pytest.raises(ConfigError, match=message):
        check_host_memory(recipe, deepspeed, launch)
    smaller = load_recipe(LARGE, ["train.micro_batch_rows=1"])
    check_host_memory(smaller, resolve_deepspeed(smaller, 1), launch)
    have(0.0005)
    with pytest.raises(ConfigError, match=r"lower train\.micro_batch_rows, of which 2 are taken"):
        check_start(load_recipe(recipe_file), "auto", launch)  # what `cmbert train` begins with
