"""What a processor can do at best, by its vendor's data sheet. Torch-free."""

import re

H100_FLOPS = 989e12
PEAK_FLOPS = (
    (r"H[18]00 PCIe", 756e12),  # nvidia.com/data-center/h100, 1,513 with sparsity
    (r"H100 NVL|H200 NVL", 835e12),  # the same page and nvidia.com/data-center/h200, 1,671
    (r"H100|H200|H800|GH200", H100_FLOPS),  # SXM boards, same pages, 1,979
    (r"H20(?!-)", 148e12),  # NVIDIA's sheet for China as press and training libraries print it; not seen itself
    (r"A100|A800", 312e12),  # nvidia.com/data-center/a100, SXM and PCIe
    (r"B200", 2250e12),  # Blackwell data sheet, HGX B200 at 1,000 W, 4.5 PFLOP/s with sparsity
    (r"GB200", 2500e12),  # the same sheet, 5 PFLOP/s
    (r"A40", 149.7e12),  # nvidia.com/data-center/a40
    (r"A10", 125e12),  # nvidia.com/data-center/products/a10-gpu
    (r"L40S", 362e12),  # nvidia.com/data-center/l40s, 733 with sparsity
    (r"L4", 121e12),  # nvidia.com/data-center/l4, 242 with sparsity
    (r"L20", 119.5e12),  # as H20
    (r"RTX 4090$", 165.2e12),  # Ada GPU architecture white paper, appendix A, table 2
    (r"RTX 4090 D$", 147.1e12),  # the same, x 14,592 / 16,384 cores (nvidia.cn, RTX 4090 D); both boost to 2.52 GHz
    (r"RTX 5090$", 209.5e12),  # RTX Blackwell GPU architecture white paper, table 3
    (r"RTX A6000", 154.8e12),  # Ampere GA102 GPU architecture white paper v2, table 3
    (r"RTX 6000 Ada Generation", 364e12),  # RTX PRO Blackwell GPU architecture white paper, table 4
    (r"MI300X", 1307.4e12),  # AMD Instinct MI300X data sheet
)
"""Part of torch's name of a GPU -> dense bf16 operations per second, summed in fp32 (half of what a sheet gives with
sparsity). A GeForce sums in fp32 at half the rate of its fp16 sums, which its advertised figures are of."""


def peak_flops(name: str) -> float | None:
    """Return dense bf16 operations per second of the GPU that torch calls `name`; None if it is not in the table.

    A slice of a GPU (MIG) has no figure.
    """
    if "MIG" in name:
        return None
    return next((flops for part, flops in PEAK_FLOPS if re.search(rf"\b({part})\b", name)), None)
