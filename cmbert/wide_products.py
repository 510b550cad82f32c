"""Products of bf16 matrices on a CPU that has no instructions for bf16.

torch multiplies bf16 element by element there, at a quarter to a sixtieth of fp32's speed. Made in fp32 and rounded,
the product is what instructions for bf16 give: exact factors, sums in fp32, one rounding at the end.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")  # what torch makes of every product, in both directions


def multiplies_bf16() -> bool:
    """Return whether torch has a fast bf16 product on this CPU: by AVX-512 or AMX, or Arm's bf16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def widen_products() -> torch.library.Library | None:
    """Where this CPU does not multiply bf16, let all such products of this process go by way of fp32; say so.

    Others keep their bits, and every product of the process takes some microseconds more. What is returned holds the
    change in force.
    """
    if multiplies_bf16():
        return None
    log.info("this CPU has no instructions for bf16: its products are made in fp32 and rounded")
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"[\s\S]*Overriding a previously registered kernel")
        for name in PRODUCTS:
            for overload, widened in (("", _widened), (".out", _widened_out)):
                kernel = torch.library.get_kernel(f"aten::{name}{overload}", "CPU")
                library.impl(name + overload, widened(kernel.call_boxed), "CPU", with_keyset=True)
    return library


def _are_bf16(*matrices: torch.Tensor) -> bool:
    return all(matrix.dtype == torch.bfloat16 for matrix in matrices)


def _widened(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def multiply(keys: Any, *matrices: torch.Tensor, **factors: float) -> torch.Tensor:
        if not _are_bf16(*matrices):
            return product(keys, *matrices, **factors)
        return product(keys, *(matrix.float() for matrix in matrices), **factors).bfloat16()

    return multiply


def _widened_out(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def multiply(keys: Any, *matrices: torch.Tensor, out: torch.Tensor, **factors: float) -> torch.Tensor:
        if not _are_bf16(*matrices, out):
            return product(keys, *matrices, out=out, **factors)
        found = torch.empty(out.shape, dtype=torch.float32)
        product(keys, *(matrix.float() for matrix in matrices), out=found, **factors)
        return out.copy_(found)

    return multiply
