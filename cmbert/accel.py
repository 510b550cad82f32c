"""The only home of optional kernels: find what is installed, choose, and say which was chosen.

Shapes: T tokens of the packed batch, H heads, K head width, P segments, D hidden width.
"""

import functools
import importlib
import inspect
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch.nn import attention as torch_attention

from cmbert.config.schema import KernelConfig
from cmbert.environment import is_installed
from cmbert.errors import ConfigError
from cmbert.wide_products import widen_products

log = logging.getLogger(__name__)

VarlenAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor]
"""(query_THK, key_THK, value_THK, cu_seqlens (P+1,) int32, longest segment, tokens seen each side or -1) -> out_THK."""

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(hidden (..., D), weight (D,), eps) -> (..., D), of hidden's dtype."""

RECOMPILE_LIMIT = 64
"""Variants of a compiled function in a process before torch raises an error; its 8 are soon spent by layers with and
without a first norm, training and evaluation, and models of several sizes. A training step adds none (tested)."""

HOW_TO_BUILD = "slurm/install_kernels.sh in a clone of the project builds it"
CUBLAS_WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same bits twice (its documentation)."""

AMPERE = (8, 0)  # least compute capability of FlashAttention-2, and of torch's copy of it
HOPPER = (9, 0)  # the one compute capability that FlashAttention-3 is written for


class AttentionKernel(NamedTuple):
    """A fused attention kernel for CUDA, fp16 or bf16."""

    lacks: Callable[[], str]
    """Imports what `call` needs and says what of it is not to be had, "" if all is there."""
    least: tuple[int, int]
    """Least compute capability."""
    only: tuple[tuple[int, int], ...]
    """The only compute capabilities it is for; empty = all from the least."""
    call: VarlenAttention


class AttentionBackend(NamedTuple):
    """A chosen backend; `varlen` is None for "cpu", whose code is plain torch in `cmbert.model.attention`.

    A compiled layer takes `varlen` in as one node: all kernels here are operators of torch's.
    """

    name: str
    varlen: VarlenAttention | None


def attention_backend(device: torch.device, dtype: torch.dtype, requested: str = "auto") -> AttentionBackend:
    """Choose the attention for activations on `device` of `dtype`: "auto", "cpu" or a name of ATTENTION_KERNELS.

    "cpu" is plain torch and runs anywhere, in fp32 too. "auto" takes the first kernel of ATTENTION_KERNELS that this
    machine has, else "cpu"; that order is not our measurement. Raises ConfigError if `requested` is unknown, not
    installed, or cannot run there.

    The choice holds for the process, not only for the caller: "flash_attn_3" makes torch's own flash kernels, those of
    `scaled_dot_product_attention` included, FlashAttention-3, and every other choice on CUDA gives them back.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    backend = _choose(str(device), dtype, capability, requested)
    wanted = "FA3" if backend.name == "flash_attn_3" else None
    if capability is not None and torch_attention.current_flash_attention_impl() != wanted:
        if wanted:
            torch_attention.activate_flash_attention_impl(wanted)
        else:
            torch_attention.restore_flash_attention_impl()
    return backend


def prepare_kernels(kernels: KernelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Let this process compute as `kernels` says, in `dtype` on `device`; call it before anything has begun.

    Raises ConfigError if `kernels` asks for what this machine lacks.
    """
    apply_determinism(kernels)
    attention_backend(device, dtype, kernels.attention)
    norm_function(kernels.norm)
    if kernels.compile:
        compiled(prepare_kernels, dynamic=False)
    if device.type == "cpu":
        widen_products()  # for fp32, too: Muon's are bf16 at all times


def apply_determinism(kernels: KernelConfig) -> None:
    """With `kernels.deterministic`, let every operation of this process give the same bits twice, or raise an error.

    Call it before the first product on a GPU: cuBLAS reads its variable once. All backends follow torch's flag, FA2 by
    an argument, torch's kernels, FA3 among them, by themselves. Raises ConfigError for a variable that cannot hold it.
    """
    if not kernels.deterministic:
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES[0])
    if workspace not in CUBLAS_WORKSPACES:
        raise ConfigError(
            f"kernels.deterministic: CUBLAS_WORKSPACE_CONFIG={workspace} lets cuBLAS vary; unset it, or set it to "
            f"{' or '.join(CUBLAS_WORKSPACES)}"
        )
    torch.use_deterministic_algorithms(True)  # inductor, too, then no longer chooses by the clock
    # Filling what `torch.empty` returns costs time, and only a read that is a bug would notice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of a module


@functools.cache  # once per process, device and dtype, so the choice is logged once
def _choose(device: str, dtype: torch.dtype, capability: tuple[int, int] | None, requested: str) -> AttentionBackend:
    if requested not in ("auto", "cpu", *ATTENTION_KERNELS):
        known = ", ".join(("auto", "cpu", *ATTENTION_KERNELS))
        raise ConfigError(f"kernels.attention: {requested!r} is unknown; choose one of {known}")
    asked = ATTENTION_KERNELS if requested == "auto" else {requested} & ATTENTION_KERNELS.keys()
    missing = {name: what_is_missing(name, dtype, capability) for name in asked}
    if missing.get(requested):
        raise ConfigError(f"kernels.attention: {requested!r} cannot run on {device}: {missing[requested]}; or ask auto")
    able = [name for name, lack in missing.items() if not lack]
    name = requested if requested != "auto" else [*able, "cpu"][0]
    passed_over = "".join(f"; not {other}: {lack}" for other, lack in missing.items() if lack and capability)
    if capability is not None:  # a CPU leaves no choice
        log.info("attention on %s: %s (asked for %s%s)", device, name, requested, passed_over)
    return AttentionBackend(name, ATTENTION_KERNELS[name].call if name in ATTENTION_KERNELS else None)


def what_is_missing(name: str, dtype: torch.dtype, capability: tuple[int, int] | None) -> str:
    """Return why the kernel `name` cannot run, "" if it can. capability: of the CUDA device, None without one."""
    kernel = ATTENTION_KERNELS[name]
    if capability is None:
        return "it needs a CUDA device"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, not {dtype}"
    if capability < kernel.least or (kernel.only and capability not in kernel.only):
        return f"it is not made for compute capability {capability[0]}.{capability[1]}"
    return kernel.lacks()


def _lacks(module: str, function: str = "", parameter: str = "") -> str:
    """Import `module`; say what is missing of `module.function(parameter=)`, "" if nothing."""
    try:
        found = importlib.import_module(module)
    except (ImportError, OSError) as error:  # not installed, or built against another torch or CUDA
        reason = str(error).partition("\n")[0]
        return f"module {module} cannot be imported: {reason} ({HOW_TO_BUILD})"
    if function and not hasattr(found, function):
        return f"module {module} has no {function}"
    if parameter and parameter not in inspect.signature(getattr(found, function)).parameters:
        return f"{module}.{function} has no parameter {parameter}"
    return ""


def _lacks_flash_attn_3() -> str:
    if lack := _lacks("flash_attn_interface"):
        return lack
    absent = [name for name in ("fwd", "bwd") if not hasattr(torch.ops.flash_attn_3, name)]
    return f"flash_attn_interface registers no operator flash_attn_3::{absent[0]}" if absent else _lacks_torch_varlen()


def _lacks_flash_attn() -> str:
    lack = _lacks("flash_attn", "flash_attn_varlen_func")
    if lack and not _lacks("flash_attn") and is_installed("flash_attn.cute"):
        return f"{lack}: this is FlashAttention 4 alone (flash_attn/cute), which is not called ({HOW_TO_BUILD})"
    return lack


def _lacks_torch_varlen() -> str:
    lack = _lacks("torch.nn.attention.varlen", "varlen_attn", "window_size")
    return f"torch {torch.__version__} is too old: {lack}; install torch 2.11 or newer" if lack else ""


def _flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, side: int
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
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
    "flash_attn_3": AttentionKernel(_lacks_flash_attn_3, HOPPER, (HOPPER,), _torch_varlen),
    "flash_attn": AttentionKernel(_lacks_flash_attn, AMPERE, (), _flash_attn),
    "torch_varlen": AttentionKernel(_lacks_torch_varlen, AMPERE, (), _torch_varlen),
}
"""Fused kernels in order of preference. FlashAttention-3 before 2 on Hopper is its authors' measurement (arXiv
2407.08608), not ours; the last two hold the same kernels, and were not measured against each other.

FlashAttention-3 is called through torch's operator, which `attention_backend` lets it run: release 2.8.3 has no
operator of its own that torch.compile can trace (hopper/flash_attn_interface.py)."""


def norm_function(requested: str) -> Norm:
    """Return RMSNorm as "torch" or "apex" computes it. Raises ConfigError if apex is asked for and not installed."""
    if requested == "torch":
        return _torch_rms_norm
    if not is_installed("apex.normalization"):
        raise ConfigError(f"kernels.norm: {requested!r}: NVIDIA apex is not installed ({HOW_TO_BUILD}); or use torch")
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
