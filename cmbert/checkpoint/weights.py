"""The fp32 weights of a checkpoint, proved before they are read; and checkpoints of weights alone.

Those hold model.safetensors, state.json and MANIFEST.json: a model to score, to export and to start from. They have no
optimizer's state, so no training goes on from them.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
from cmbert.checkpoint.files import MANIFEST_FILE, WEIGHTS_FILE, check_files, describe_file, has_weights_alone
from cmbert.checkpoint.state import STATE_FILE, TrainState
from cmbert.files.whole import write_json


def load_weights(checkpoint: Path) -> dict[str, "torch.Tensor"]:
    """Return the fp32 weights of a checkpoint. Raises CheckpointError."""
    check_files(checkpoint)
    if has_weights_alone(checkpoint):
        from safetensors.torch import load_file

        from cmbert.model.heads import DECODER, EMBEDDING

        weights = load_file(checkpoint / WEIGHTS_FILE)
        return weights | {DECODER: weights[EMBEDDING]}
    from cmbert.zero.engine import consolidate  # torch and DeepSpeed: who only looks for checkpoints needs neither

    return consolidate(checkpoint.parent, checkpoint.name)


def write_weights(folder: Path, weights: dict[str, "torch.Tensor"], state: TrainState) -> None:
    """Make a checkpoint of weights alone in `folder`, which is built aside.

    weights: fp32, on the CPU, without the decoder's, which are the embedding's. state: how far training had come.
    """
    from safetensors.torch import save_file

    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / STATE_FILE, asdict(replace(state, guard={}, ephemeral=False, job="")))
    write_json(folder / MANIFEST_FILE, {name: describe_file(folder / name) for name in (WEIGHTS_FILE, STATE_FILE)})
