"""Part 1: does the GPU compute what it should; meanwhile what part 2 runs is compiled into the shared cache."""

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from layout import backends, draw
from measuring import Measuring, part

from cmbert.bench.throughput import DTYPE, make_batch
from cmbert.config.schema import KernelConfig, OptimizerConfig
from cmbert.model.attention import attend
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.mixed_precision import MixedPrecision
from cmbert.zero.groups import build_optimizer
from cmbert.zero.optim import AdamW

SUITE = "tests/cmbert/model/test_attention_conformance.py"
TESTS = "not flex"  # a peer that is compiled anew for every case, which takes longer than there is time
DRY_TESTS = "test_same_bits_twice and cpu-cpu-bfloat16"
SHAPES = ((64, 256), (1000, 64), (256,))  # of the optimizers' parameters; the last without decay
STEPS = 5
SPARE_SECONDS = 2  # of the part's own, after its last measurement
COMPARED_LAYERS = 4  # of the large model, compiled beside eager: every kind of layer, little to compile


def conformance(measuring: Measuring) -> None:
    """Run the attention suite for all that this machine has."""
    report = measuring.scratch / "conformance.xml"
    command = [sys.executable, "-m", "pytest", SUITE, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-k", DRY_TESTS if measuring.dry_run else TESTS]
    subprocess.run(command, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    wrong = [
        case.attrib["name"] for case in suite if case.find("failure") is not None or case.find("error") is not None
    ]
    measuring.detail(conformance=counts, conformance_failures=wrong)
    assert counts["tests"] > counts["skipped"], "pytest ran no test"
    measuring.put(conformance_failed=counts["failures"] + counts["errors"])


def gradients_twice(measuring: Measuring, backend: str) -> None:
    """Say whether a gradient has the same bits twice, as the kernel is and when a deterministic one is asked for."""
    (_, load), *_ = measuring.loads(1024)
    qkv, layout = draw(measuring, load.lengths, backend)
    for name, is_asked in ((backend, False), (f"{backend}_deterministic", True)):
        torch.use_deterministic_algorithms(is_asked)
        try:
            twice = [torch.autograd.grad(attend(qkv, layout, -1).square().sum(), qkv)[0] for _ in range(2)]
        finally:
            torch.use_deterministic_algorithms(False)
        measuring.detail(**{f"gradient_twice_{name}_same_bits": torch.equal(*twice)})


def parameters_on(device: torch.device) -> torch.nn.ParameterList:
    """Return the same fp32 parameters on any device."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.ParameterList(torch.randn(shape, generator=generator).to(device) for shape in SHAPES)


def step(optimizer: AdamW, seed: int) -> None:
    """Do one step on gradients drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    optimizer.step()


def optimizers(measuring: Measuring) -> None:
    """Compare steps on the GPU with steps on the CPU; then continue from a saved state, which must change no bit."""
    worst = 0.0
    for kind in ("adamw", "stable_adamw"):
        config, cpu = OptimizerConfig(kind=kind), torch.device("cpu")
        theirs, ours = parameters_on(cpu), parameters_on(measuring.device)
        optimizer, reference = build_optimizer(ours, config), build_optimizer(theirs, config)
        for seed in range(STEPS):
            step(reference, seed)
            step(optimizer, seed)
        for one, other in zip(ours, theirs, strict=True):
            worst = max(worst, ((one.cpu() - other).norm() / other.norm()).item())
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        copies = torch.nn.ParameterList(parameter.detach().clone() for parameter in ours)
        resumed = build_optimizer(copies, config)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, map_location="cpu"))  # as a checkpoint is read
        for number in (STEPS, STEPS + 1):
            step(optimizer, number)
            step(resumed, number)
        is_same = all(torch.equal(one, other) for one, other in zip(ours, copies, strict=True))
        measuring.detail(**{f"{kind}_continues_bit_for_bit": is_same})
        assert is_same, f"{kind}: other weights after its state was saved and loaded"
    measuring.put(optimizer_difference=worst)


def losses(measuring: Measuring, kernels: KernelConfig) -> Iterator[float]:
    """Yield the losses of training steps of a shallow large model."""
    config, _ = measuring.large()
    config = replace(config, num_layers=min(COMPARED_LAYERS, config.num_layers))
    torch.manual_seed(0)
    model = MaskedLanguageModel(config, kernels)
    model = model.to(measuring.device, DTYPE)
    optimizer = MixedPrecision(model, 1e-4)
    (_, load), *_ = measuring.loads(1024)
    batch = make_batch(load.lengths, config.vocab_size, measuring.device)
    for _ in range(STEPS):
        loss, _, _ = model(batch.input_ids, batch.cu_seqlens, batch.masked_positions, batch.targets)
        yield loss.item() / len(batch.targets)
        (loss / len(batch.targets)).backward()
        optimizer.step()


def compiled(measuring: Measuring) -> None:
    """Compare the losses of the same steps, compiled and eager."""
    _, kernels = measuring.large()
    eager, fused = (list(losses(measuring, replace(kernels, compile=compile))) for compile in (False, True))
    measuring.detail(losses_eager=eager, losses_compiled=fused)
    measuring.put(compiled_difference=max(abs(one - other) / other for one, other in zip(fused, eager, strict=True)))


def measurements(measuring: Measuring) -> None:
    """Run all of the part, and wait for what compiles beside it."""
    warm = [sys.executable, str(Path(__file__).with_name("warm.py")), "--output", str(measuring.scratch / "warm.json")]
    warm += ["--seconds", str(measuring.left()), *(["--dry-run"] if measuring.dry_run else [])]
    warming = subprocess.Popen(warm)
    measuring.measure("optimizer", lambda: optimizers(measuring))
    for backend in backends(measuring):
        measuring.measure(f"gradient_twice_{backend}", partial(gradients_twice, measuring, backend))
    measuring.measure("conformance", lambda: conformance(measuring))
    measuring.measure("compiled", lambda: compiled(measuring))
    try:
        warming.wait(max(measuring.left() - SPARE_SECONDS, 0))
    except subprocess.TimeoutExpired:
        warming.kill()
        measuring.detail(warm="the compile cache was not finished in time: part 2 compiles what is missing")


if __name__ == "__main__":
    sys.exit(part(measurements))
