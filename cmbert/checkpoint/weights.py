"""The fp32 weights of a checkpoint, proved before they are read."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
from cmbert.checkpoint.files import check_files


def load_weights(checkpoint: Path) -> dict[str, "torch.Tensor"]:
    """Return the fp32 weights of a checkpoint. Raises CheckpointError."""
    from cmbert.zero.engine import consolidate  # torch and DeepSpeed: who only looks for checkpoints needs neither

    check_files(checkpoint)
    return consolidate(checkpoint.parent, checkpoint.name)
