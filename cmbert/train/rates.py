"""How fast the arithmetic of a step was."""

from collections.abc import Mapping

import torch

from cmbert.config.schema import ModelConfig
from cmbert.machine.hardware import peak_flops
from cmbert.model.cost import count_batch_flops


def compute_rates(
    model: ModelConfig,
    segment_lengths: Mapping[int, int],
    masked_tokens: float,
    seconds: float,
    world_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Return `flops_per_second` of a rank, the mean of them, and on a GPU of a known peak `mfu`, its share of that.

    Counted is what the model needs for the step's real tokens (`count_batch_flops`), as `cmbert bench train` does.
    segment_lengths: segments of the whole step by length. On a CPU there is no data sheet to hold it against: no `mfu`.
    """
    rate = count_batch_flops(model, segment_lengths, masked_tokens, training=True) / world_size / seconds
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {"flops_per_second": rate, **({"mfu": rate / peak} if peak else {})}
