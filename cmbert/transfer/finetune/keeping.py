"""The weights of the best trial so far, kept while the others run, so that its model can be saved at the end."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cmbert.files.folders import aside_path
from cmbert.files.operations import fsync_path


class Keeper:
    """One file of weights beside the trials' records, of the best of those that were offered.

    Trials whose weights are not there can be trained again: on a CPU they come out the same to the last bit.
    """

    def __init__(self, folder: Path, wanted: str = ""):
        """Keep in `folder`. wanted: the trial that is kept whatever it scores."""
        self.path, self.wanted = folder / "best.safetensors", wanted

    def kept(self) -> tuple[str, float]:
        """Return the trial whose weights are there and its score on dev; "" and minus infinity if there is none."""
        if not self.path.is_file():
            return "", -math.inf
        with safe_open(self.path, "pt") as file:
            told = file.metadata()
        return told["trial"], float(told["score"])

    def offer(self, trial: str, score: float, model: torch.nn.Module) -> None:
        """Keep the weights of a trial's model, in fp32, if it scored more than the one that is kept, or is wanted."""
        if trial != self.wanted and score <= self.kept()[1]:
            return
        weights = {name: weight.detach().float().cpu().contiguous() for name, weight in model.state_dict().items()}
        aside = aside_path(self.path)
        save_file(weights, aside, metadata={"trial": trial, "score": repr(score)})
        fsync_path(aside)
        aside.replace(self.path)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that are kept, fp32 on the CPU, by the names of a `TaskModel`."""
        return load_file(self.path)

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
