"""Part 0: is all there that the others need, does one step run, and what does the card give at best."""

import importlib
import inspect
import shutil
import statistics
import sys
import time

import torch
from measuring import QUICKSTART, Measuring, part, start_training

from cmbert.accel import ATTENTION_KERNELS, what_is_missing
from cmbert.bench.throughput import DTYPE, Run, timed
from cmbert.config.schema import OptimizerConfig
from cmbert.machine.hardware import peak_flops
from cmbert.zero.groups import build_optimizer

MODULES = (
    "numpy", "numba", "tokenizers", "transformers", "deepspeed", "tensorboard", "safetensors", "tomli_w", "pytest",
    "triton", "flash_attn", "flash_attn_interface",
)  # fmt: skip
ROUNDS = 5
COPY_BYTES, DRY_COPY_BYTES = 1 << 30, 1 << 20
GIGABYTE, TERA = 1e9, 1e12


def seconds_of(run: Run, device: torch.device, repeats: int = 5) -> float:
    """Return the median seconds of a run that has warmed up."""
    timed(run, 2, device)
    return statistics.median(timed(run, repeats, device) for _ in range(ROUNDS))


def imports(measuring: Measuring) -> None:
    """Import what the parts import; what is missing is no failure here, but of the part that needs it."""
    found = {}
    for name in MODULES:
        started = time.perf_counter()
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            found[name] = f"missing: {error}"
        else:
            version = getattr(module, "__version__", "?")
            found[name] = f"{version}, imported in {time.perf_counter() - started:.1f} s"
    measuring.detail(modules=found, python=sys.version, compiler=shutil.which("g++"))


def describe(measuring: Measuring) -> None:
    """Say what card this is, and which attention can run on it."""
    from torch.nn.attention import varlen

    capability = None if measuring.dry_run else torch.cuda.get_device_capability()
    backends = {name: what_is_missing(name, DTYPE, capability) or "can run" for name in ATTENTION_KERNELS}
    signature = str(inspect.signature(varlen.varlen_attn))
    measuring.detail(varlen_signature=signature, attention=backends, capability=capability, cuda=torch.version.cuda)
    if not measuring.dry_run:
        free, total = torch.cuda.mem_get_info()
        measuring.detail(free_gb=free / GIGABYTE, total_gb=total / GIGABYTE)


def fused_steps(measuring: Measuring) -> None:
    """Do one step of both optimizers on the device."""
    for kind in ("adamw", "stable_adamw"):
        layer = torch.nn.Linear(64, 64, device=measuring.device)
        optimizer = build_optimizer(layer, OptimizerConfig(kind=kind))
        before = layer.weight.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        layer(torch.randn(8, 64, device=measuring.device)).square().sum().backward()
        optimizer.step()
        moved = (layer.weight - before).abs().max().item()
        assert 0 < moved < 1, f"{kind} moved a weight by {moved}"
        measuring.detail(**{f"{kind}_moved": moved})


def deepspeed_step(measuring: Measuring) -> None:
    """Do one step of the quickstart's model under DeepSpeed, with NCCL on a GPU."""
    settings = measuring.settings(QUICKSTART)
    training = start_training(QUICKSTART, measuring.scratch / "one", settings, "--max-steps", "1")
    (record,) = training.finish()
    measuring.detail(deepspeed_loss=record["loss"], deepspeed_seconds=time.time() - training.started)


def copies(measuring: Measuring) -> None:
    """Measure copies: within the device, and from and to host memory, pinned and not."""
    num_bytes = DRY_COPY_BYTES if measuring.dry_run else COPY_BYTES
    device = measuring.device
    here, there = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    plain = torch.zeros(num_bytes, dtype=torch.uint8)
    pinned = plain if measuring.dry_run else plain.pin_memory()
    rates = {
        "copy_device": 2 * num_bytes / seconds_of(lambda: there.copy_(here), device),
        "copy_to_host": num_bytes / seconds_of(lambda: pinned.copy_(here, non_blocking=True), device),
        "copy_from_host": num_bytes / seconds_of(lambda: here.copy_(pinned, non_blocking=True), device),
        "copy_to_pageable": num_bytes / seconds_of(lambda: plain.copy_(here), device, repeats=1),
    }
    measuring.put(**{f"{name}_gb_per_second": rate / GIGABYTE for name, rate in rates.items()})


def products(measuring: Measuring) -> None:
    """Measure the bf16 product of the data sheets, and those of our layers for T tokens."""
    side = 256 if measuring.dry_run else 8192
    model, _ = measuring.large()
    width, inner, tokens = model.hidden_size, model.intermediate_size, measuring.tokens
    shapes = {
        "8192": (side, side, side),
        "qkv": (tokens, width, 3 * width),
        "attention_out": (tokens, width, width),
        "mlp_in": (tokens, width, 2 * inner),
        "mlp_out": (tokens, inner, width),
        "decoder": (int(0.3 * tokens), width, model.vocab_size),
    }
    peak = None if measuring.dry_run else peak_flops(torch.cuda.get_device_name())
    for name, (rows, depth, columns) in shapes.items():
        left = torch.randn(rows, depth, device=measuring.device).to(DTYPE)
        right = torch.randn(columns, depth, device=measuring.device).to(DTYPE)
        seconds = seconds_of(lambda left=left, right=right: left @ right.t(), measuring.device)
        rate = 2 * rows * depth * columns / seconds
        measuring.put(**{f"product_{name}_tflops": rate / TERA})
        if peak:
            measuring.put(**{f"product_{name}_share_of_peak": rate / peak})


def measurements(measuring: Measuring) -> None:
    """Run all of the part, what the others rest on first."""
    measuring.measure("imports", lambda: imports(measuring))
    measuring.measure("describe", lambda: describe(measuring))
    measuring.measure("fused_steps", lambda: fused_steps(measuring))
    measuring.measure("product", lambda: products(measuring))
    measuring.measure("copy", lambda: copies(measuring))
    measuring.measure("deepspeed_step", lambda: deepspeed_step(measuring))


if __name__ == "__main__":
    sys.exit(part(measurements))
