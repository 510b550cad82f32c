"""The only home of optional kernels: find what is installed, choose, and say which was chosen.

Shapes: T tokens of the packed batch, H heads, K head width, P pieces, D hidden width.
"""

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch

from cmbert.config.schema import KernelConfig
from cmbert.errors import ConfigError

log = logging.getLogger(__name__)

VarlenAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor]
"""(query_THK, key_THK, value_THK, cu_seqlens (P+1,) int32, longest piece, tokens seen each side or -1) -> out_THK."""

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(hidden (..., D), weight (D,), eps) -> (..., D), of hidden's dtype."""

RECOMPILE_LIMIT = 64
"""Variants of a compiled function in a process before torch raises an error; its 8 are soon spent by layers with and
without a first norm, training and evaluation, and models of several sizes. A training step adds none (tested)."""

HOPPER = (9, 0)  # compute capability that FlashAttention-3 is written for


class AttentionKernel(NamedTuple):
    """A fused attention kernel for CUDA, fp16 or bf16."""

    module: str
    """What must be installed."""
    capabilities: tuple[tuple[int, int], ...]
    """Compute capabilities it is for; empty = all that have bf16."""
    call: VarlenAttention
    is_operator: bool
    """torch.compile can see it: registered with torch, with its output's shape and its gradient."""


class AttentionBackend(NamedTuple):
    """A chosen backend; `varlen` is None for "cpu", whose code is plain torch in `cmbert.model.attention`."""

    name: str
    varlen: VarlenAttention | None
    is_operator: bool
    """A compiled layer takes `varlen` in as one node; else it is compiled before and after it."""


def attention_backend(device: torch.device, dtype: torch.dtype, requested: str = "auto") -> AttentionBackend:
    """Choose the attention for activations on `device` of `dtype`: "auto", "cpu" or a name of ATTENTION_KERNELS.

    "cpu" is plain torch and runs anywhere, in fp32 too. "auto" takes the first kernel of ATTENTION_KERNELS that this
    machine has, else "cpu". Raises ConfigError if `requested` is unknown, not installed, or cannot run there.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return _choose(str(device), dtype, capability, requested)


def check_kernels(kernels: KernelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError if `kernels` asks for what this machine lacks, before anything has begun."""
    attention_backend(device, dtype, kernels.attention)
    norm_function(kernels.norm)
    if kernels.compile:
        compiled(check_kernels, dynamic=False)


@functools.cache  # once per process, device and dtype, so the choice is logged once
def _choose(device: str, dtype: torch.dtype, capability: tuple[int, int] | None, requested: str) -> AttentionBackend:
    if requested not in ("auto", "cpu", *ATTENTION_KERNELS):
        known = ", ".join(("auto", "cpu", *ATTENTION_KERNELS))
        raise ConfigError(f"kernels.attention: {requested!r} is unknown; choose one of {known}")
    missing = {name: what_is_missing(name, dtype, capability) for name in ATTENTION_KERNELS}
    if missing.get(requested):
        raise ConfigError(f"kernels.attention: {requested!r} cannot run on {device}: {missing[requested]}; or ask auto")
    able = [name for name, lack in missing.items() if not lack]
    name = requested if requested != "auto" else [*able, "cpu"][0]
    log.info("attention on %s: %s (asked for %s)", device, name, requested)
    if name == "cpu":
        return AttentionBackend(name, None, False)
    return AttentionBackend(name, ATTENTION_KERNELS[name].call, ATTENTION_KERNELS[name].is_operator)


def what_is_missing(name: str, dtype: torch.dtype, capability: tuple[int, int] | None) -> str:
    """Return why the kernel `name` cannot run, "" if it can. capability: of the CUDA device, None without one."""
    kernel = ATTENTION_KERNELS[name]
    if capability is None:
        return "it needs a CUDA device"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, not {dtype}"
    if kernel.capabilities and capability not in kernel.capabilities:
        return f"it is not made for compute capability {capability[0]}.{capability[1]}"
    return "" if is_installed(kernel.module) else f"module {kernel.module} is not installed (slurm/install_kernels.sh)"


def is_installed(module: str) -> bool:
    """Say whether `module` can be found, without importing it; a missing parent package counts as no."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _flash_attn_3(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, side: int
) -> torch.Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    out = _call_flash(flash_attn_varlen_func, query, key, value, cu_seqlens, longest, side)
    return out[0] if isinstance(out, tuple) else out  # early versions returned the log-sum-exp, too


def _flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, side: int
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    return _call_flash(flash_attn_varlen_func, query, key, value, cu_seqlens, longest, side)


def _call_flash(
    function: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    side: int,
) -> Any:
    """Call flash_attn_varlen_func, whose parameters are the same in FlashAttention 2 and 3."""
    return function(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        window_size=(side, side),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, side: int
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest, window_size=(side, side))
    return cast(torch.Tensor, out)  # a tuple only when asked for the log-sum-exp


ATTENTION_KERNELS = {
    "flash_attn_3": AttentionKernel("flash_attn_interface", (HOPPER,), _flash_attn_3, False),
    "flash_attn": AttentionKernel("flash_attn", (), _flash_attn, True),
    "torch_varlen": AttentionKernel("torch.nn.attention.varlen", (), _torch_varlen, True),
}
"""Fused kernels in order of preference. FlashAttention-3 before 2 on Hopper is its authors' measurement (arXiv
2407.08608), not ours; the last two hold the same kernels, and were not measured against each other. FlashAttention-3 of
2.8.3, what slurm/install_kernels.sh builds, calls its kernels past torch's operators."""


def norm_function(requested: str) -> Norm:
    """Return RMSNorm as "torch" or "apex" computes it. Raises ConfigError if apex is asked for and not installed."""
    if requested == "torch":
        return _torch_rms_norm
    if not is_installed("apex.normalization"):
        raise ConfigError(
            f"kernels.norm: {requested!r}: NVIDIA apex is not installed (slurm/install_kernels.sh); or use torch"
        )
    return _apex_rms_norm


def _torch_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, eps)


def _apex_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    return fused_rms_norm_affine(hidden, weight, weight.shape, eps)


def compiled(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    """Return `torch.compile(function)`, as one graph. dynamic: one for all sizes, else one for each size met.

    Raises ConfigError without a C++ compiler, which inductor needs on the CPU, and on a GPU for its launchers.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"kernels.compile: no C++ compiler {compiler!r} found; install one, or set it to false")
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return torch.compile(function, fullgraph=True, dynamic=dynamic)
