"""The only home of optional kernels: find what is installed, choose, and say which was chosen.

Shapes: T tokens of the packed batch, H heads, K head width, P pieces.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import NamedTuple, cast

import torch

from cmbert.errors import ConfigError

log = logging.getLogger(__name__)

VarlenAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor]
"""(query_THK, key_THK, value_THK, cu_seqlens (P+1,) int32, longest piece, tokens seen each side or -1) -> out_THK."""

MODULES = {"flash_attn": "flash_attn", "torch_varlen": "torch.nn.attention.varlen"}
"""Fused backends in order of preference, and the module each needs."""


class AttentionBackend(NamedTuple):
    """A chosen backend; `varlen` is None for "cpu", whose code is plain torch in `cmbert.model.attention`."""

    name: str
    varlen: VarlenAttention | None


@functools.cache  # once per process and device, so the choice is logged once
def attention_backend(device: torch.device, requested: str = "auto") -> AttentionBackend:
    """Choose the attention kernel for `device`: "auto", "cpu", "flash_attn" or "torch_varlen".

    The fused kernels need CUDA and fp16 or bf16; "cpu" is plain torch and runs anywhere, in fp32 too.
    Raises ConfigError if `requested` is unknown, not installed, or cannot run on `device`.
    """
    if requested not in ("auto", "cpu", *MODULES):
        raise ConfigError(f"attention backend {requested!r} is unknown: choose one of auto, cpu, {', '.join(MODULES)}")
    installed = [name for name, module in MODULES.items() if device.type == "cuda" and _is_installed(module)]
    if requested in MODULES and requested not in installed:
        raise ConfigError(
            f"attention backend {requested!r} needs a CUDA device and the module {MODULES[requested]}, "
            f"and one is missing on {device}: install it or ask for auto"
        )
    name = requested if requested != "auto" else [*installed, "cpu"][0]
    log.info("attention backend on %s: %s (asked for %s)", device, name, requested)
    return AttentionBackend(name, {"flash_attn": _flash_attn, "torch_varlen": _torch_varlen}.get(name))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


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
