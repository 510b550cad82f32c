"""Run by test_muon_zero.py under a launcher: Muon's steps at every ZeRO stage; rank 0 saves what came of them."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cmbert.cluster.distributed import gather_from_ranks
from cmbert.config.schema import ModelConfig, OptimizerConfig
from cmbert.model.heads import MaskedLanguageModel, stacked_matrices
from cmbert.model.init import initialise
from cmbert.zero.engine import build_engine
from cmbert.zero.groups import build_optimizer
from cmbert.zero.muon import Muon
from cmbert.zero.optim import AdamW, Fragment, StepDecision
from tests.cmbert.zero.ranks import save_found

# (shape, matrices in it, optimizer group). ZeRO 1 and 2 cut each group as a whole, ZeRO 3 every parameter: see
# CUTS of test_muon_zero.py for what comes of that. Groups 0 to 2 are Muon's, 3 and 4 AdamW's.
SHAPES = (
    ((24, 8), 3, 0),
    ((8, 8), 1, 0),
    ((11,), 0, 4),
    ((24, 8), 2, 0),
    ((8, 8), 1, 0),
    ((30, 7), 3, 1),
    ((7, 10), 1, 1),
    ((19, 3), 0, 3),
    ((13, 11), 1, 2),
    ((2, 2), 1, 2),
    ((1,), 0, 4),
)
NUM_STEPS = 4
DECAYS = (0.1, 0.0, 0.1, 0.1, 0.0)
RATE = 0.02
SETTINGS: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-6, "lr": RATE, "momentum": 0.95}
SUB_GROUP = 100  # elements of one rank: ZeRO 3 steps group 0 in several
SPOILT = (2, 3)  # steps before which one comes that is skipped: not finite on the last rank, then far too large
MODEL = ModelConfig(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48, vocab_size=64, max_length=64)
CASES = ("1", "2", "3", "3 of placeholders")


class Weights(nn.Module):
    """A "model" whose gradient is its input."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape, _, _ in SHAPES)

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return sum((weight * gradient).sum() for weight, gradient in zip(self.all, gradients, strict=True))


class Trained(NamedTuple):
    """What comes of the steps in one case."""

    weights: list[torch.Tensor]
    unskipped: bool
    """Whether the same steps gave the same bits once more, with others between them that were skipped."""
    accumulated: list[torch.Tensor]
    """The weights after the same steps in two micro-batches each."""
    held: list[dict[int, list[Fragment]]]
    """Of each rank: the fragments of Muon's parameters, of each of its flat tensors."""
    second_moments: list[int]
    """Bytes that the ranks keep of them for matrices, for each flat tensor."""


def parts(step: int) -> list[list[torch.Tensor]]:
    """The gradients of two micro-batches: multiples of a power of two, so that no sum of them is rounded."""
    generator = torch.Generator().manual_seed(1000 + step)
    sizes = [2.0 ** (3 * (step % 3) - index % 4 - 6) for index in range(len(SHAPES))]
    return [
        [torch.randint(-99, 99, s, generator=generator) * size for size, (s, *_) in zip(sizes, SHAPES, strict=True)]
        for _ in range(2)
    ]


def gradients(step: int) -> list[torch.Tensor]:
    """Their mean."""
    return [(first + second) / 2 for first, second in zip(*parts(step), strict=True)]


def make_optimizer(model: Weights) -> Muon:
    stacked = {weight: count for weight, (_, count, _) in zip(model.all, SHAPES, strict=True) if count}
    groups = [
        {
            "params": [weight for weight, (*_, of) in zip(model.all, SHAPES, strict=True) if of == group],
            "weight_decay": decay,
            "orthogonal": group < 3,
        }
        for group, decay in enumerate(DECAYS)
    ]
    return Muon(groups, stacked=stacked, **SETTINGS)


def config_of(case: str, accumulation: int = 1) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": int(case[0]), "sub_group_size": SUB_GROUP},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def start(case: str, accumulation: int = 1) -> Any:
    import deepspeed

    config = config_of(case, accumulation)
    with deepspeed.zero.Init(config_dict_or_path=config) if "placeholders" in case else contextlib.nullcontext():
        model = Weights()
    return build_engine(model, make_optimizer(model), config)


def whole(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return [parameter.detach().clone() for parameter in parameters]


def skip_one(engine: Any, step: int) -> None:
    """Take a step that is skipped: by DeepSpeed, which in fp32 leaves out what is not finite, or as the guards say."""
    is_last, by_guard = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1, step != SPOILT[0]
    value = 1e6 if by_guard or not is_last else float("nan")
    asked = []
    engine.basic_optimizer.should_step = lambda: asked.append(1) or StepDecision(torch.ones(()), torch.ones(()))
    engine.backward(engine([torch.full(shape, value) for shape, *_ in SHAPES]))
    engine.step()
    engine.basic_optimizer.should_step = lambda: StepDecision(torch.ones(()), torch.zeros(()))
    assert bool(asked) == by_guard


def take_steps(engine: Any, spoilt: tuple[int, ...] = ()) -> list[torch.Tensor]:
    for step in range(1, NUM_STEPS + 1):
        if step in spoilt:
            skip_one(engine, step)
        for given in parts(step) if engine.gradient_accumulation_steps() == 2 else [gradients(step)]:
            engine.backward(engine(given))
            engine.step()
    return whole(list(engine.module.parameters()))


def train(case: str) -> Trained:
    engine = start(case)
    weights, optimizer = take_steps(engine), engine.basic_optimizer
    by_muon = {number for number, (_, count, _) in enumerate(SHAPES) if count}
    flats = list(optimizer.layout.fragments.items())
    mine = {n: list(held) for n, (_, held) in enumerate(flats) if {part.parameter for part in held} & by_muon}
    kept = [optimizer.state[flats[number][0]]["exp_avg_sq"].untyped_storage().nbytes() for number in mine]
    other = start(case)
    spoilt = take_steps(other, SPOILT)
    same = all(torch.equal(a, b) for a, b in zip(weights, spoilt, strict=True))
    for (one, _), another in zip(flats, other.basic_optimizer.layout.fragments, strict=True):
        states = optimizer.state[one], other.basic_optimizer.state[another]
        same &= all(torch.equal(states[0][key], states[1][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    return Trained(
        weights,
        all(gather_from_ranks(same)),
        take_steps(start(case, accumulation=2)),
        gather_from_ranks(mine),
        [size for of_rank in gather_from_ranks(kept) for size in of_rank],
    )


def batch() -> tuple[torch.Tensor, ...]:
    """64 tokens in one segment, a half of them masked."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, MODEL.vocab_size, (64,), generator=generator)
    positions = torch.arange(0, 64, 2)
    targets = torch.randint(0, MODEL.vocab_size, (32,), generator=generator)
    return ids, torch.tensor([0, 64], dtype=torch.int32), positions, targets


def real_model() -> tuple[MaskedLanguageModel, AdamW]:
    """A model as a recipe has it, and its optimizer, at a rate of 1 without decay and clipping."""
    model = MaskedLanguageModel(MODEL)
    initialise(model, 0)
    optimizer = build_optimizer(model, OptimizerConfig(kind="muon", weight_decay=0.0, gradient_clip=0.0))
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    return model, optimizer


def first_updates(case: str) -> dict[str, torch.Tensor]:
    """What the first step takes from each of the model's matrices."""
    model, optimizer = real_model()
    matrices = list(stacked_matrices(model))
    names = {parameter: name for name, parameter in model.named_parameters()}
    before = [matrix.detach().clone() for matrix in matrices]
    engine = build_engine(model, optimizer, config_of(case))
    engine.backward(engine(*batch())[0])
    engine.step()
    after = whole(matrices)
    return {names[m]: old - new for m, old, new in zip(matrices, before, after, strict=True)}


def main(folder: Path) -> dict[str, Any]:
    return {case: (tuple(train(case)), first_updates(case) if case in "123" else None) for case in CASES}


if __name__ == "__main__":
    save_found(main)
