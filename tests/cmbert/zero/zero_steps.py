"""Run by test_optim_zero.py under a launcher: steps on given gradients at every ZeRO stage, weights saved by rank 0."""

from pathlib import Path

import torch
from torch import nn

from cmbert.zero.engine import build_engine
from cmbert.zero.optim import AdamW
from tests.cmbert.zero.ranks import save_found

SHAPES = ((7, 5), (5,), (40, 3), (1,), (33, 2))
NUM_STEPS = 12
SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-6, "lr": 0.01}


class Weights(nn.Module):
    """A "model" whose gradient is its input."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES)

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return sum((weight * gradient).sum() for weight, gradient in zip(self.all, gradients, strict=True))


def gradients(step: int) -> list[torch.Tensor]:
    """Gradients of all sizes; ten times as large now and then, so that updates are clipped."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = 10.0 if step % 4 == 3 else 0.1
    return [torch.randn(shape, generator=generator) * size * 10.0**-index for index, shape in enumerate(SHAPES)]


def groups(model: Weights) -> list[dict]:
    return [
        {"params": [p for p in model.all if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.all if p.ndim == 1], "weight_decay": 0.0},
    ]


def train(stage: int, clip_updates: bool) -> list[torch.Tensor]:
    import deepspeed

    model = Weights()
    optimizer = AdamW(groups(model), clip_updates=clip_updates, **SETTINGS)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "sub_group_size": 100},  # ZeRO 3 steps several sub-groups in turn
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine = build_engine(model, optimizer, config)
    for step in range(1, NUM_STEPS + 1):
        engine.backward(engine(gradients(step)))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return [parameter.detach().clone() for parameter in engine.module.all]


def main(folder: Path) -> dict[tuple[int, bool], list[torch.Tensor]]:
    return {(stage, clip): train(stage, clip) for stage in (1, 2, 3) for clip in (False, True)}


if __name__ == "__main__":
    save_found(main)
