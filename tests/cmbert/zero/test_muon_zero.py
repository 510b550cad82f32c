"""Muon on ZeRO's partitions is the undivided one, wherever a matrix is cut: stages 1, 2, 3 on 1 to 4 ranks."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cmbert.model.heads import stacked_matrices
from cmbert.zero.muon import Muon, matrices_of
from cmbert.zero.optim import Fragment
from tests import forking
from tests.cmbert.zero import muon_resumes, muon_steps
from tests.cmbert.zero.muon_steps import DECAYS, NUM_STEPS, RATE, SETTINGS, SHAPES, Trained, Weights
from tests.integration.launching import torchrun

ROW, ROW_END, MATRIX_END, PARAMETER_END, THREE = (
    "in a row",
    "row's end",
    "matrix's end",
    "parameter's end",
    "three ranks",
)
ALL = {ROW, ROW_END, MATRIX_END, PARAMETER_END, THREE}
# Where partitions cut matrices, for ZeRO 1 and 2 alike, and for ZeRO 3.
CUTS = {
    1: (set(), set()),
    2: ({ROW, MATRIX_END, PARAMETER_END}, {ROW, ROW_END, MATRIX_END}),
    3: ({ROW, ROW_END, THREE}, ALL),
    4: (ALL, ALL - {PARAMETER_END}),
}


def cuts_of(held: list[dict[int, list[Fragment]]]) -> set[str]:
    """Return at what kinds of places the ranks' shares of Muon's matrices end and another rank's begin."""
    found, ranks_of = set(), dict[tuple[int, int], set[int]]()
    for rank, flats in enumerate(held):
        for number, parts in flats.items():
            following = held[rank + 1].get(number, []) if rank + 1 < len(held) else []
            for part in parts:
                (rows, columns), count, _ = SHAPES[part.parameter]
                size, end = rows * columns // count, min(part.offset + part.length, rows * columns)
                for matrix in range(part.offset // size, -(-end // size)):
                    ranks_of.setdefault((part.parameter, matrix), set()).add(rank)
                is_last = part is parts[-1] or part.parameter in {other.parameter for other in following}
                if part.offset < end and following and is_last:
                    found.add(_kind(end, rows, columns, size))
    return found | ({THREE} if max(map(len, ranks_of.values())) >= 3 else set())


def _kind(end: int, rows: int, columns: int, size: int) -> str:
    if end == rows * columns:
        return PARAMETER_END
    return MATRIX_END if end % size == 0 else ROW if end % columns else ROW_END


def undivided(per_micro_batch: bool = False) -> list[torch.Tensor]:
    """Steps of our optimizer on whole parameters, without DeepSpeed."""
    model = Weights()
    optimizer = muon_steps.make_optimizer(model)
    for step in range(1, NUM_STEPS + 1):
        for given in muon_steps.parts(step) if per_micro_batch else [muon_steps.gradients(step)]:
            model(given).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [weight.detach() for weight in model.all]


def of_torch() -> list[torch.Tensor]:
    """Steps of torch's Muon on every matrix by itself, and of its AdamW on the rest."""
    parts = [
        [nn.Parameter(part.detach().clone()) for part in weight.chunk(max(1, count))]
        for weight, (_, count, _) in zip(Weights().all, SHAPES, strict=True)
    ]
    optimizers: list[torch.optim.Optimizer] = []
    for group, decay in enumerate(DECAYS):
        mine = [part for found, (*_, of) in zip(parts, SHAPES, strict=True) if of == group for part in found]
        if group < 3:
            options = {"momentum": SETTINGS["momentum"], "adjust_lr_fn": "match_rms_adamw"}
            optimizers.append(torch.optim.Muon(mine, lr=RATE, weight_decay=decay, **options))
        else:
            adam = {"betas": SETTINGS["betas"], "eps": SETTINGS["eps"]}
            optimizers.append(torch.optim.AdamW(mine, lr=RATE, weight_decay=decay, **adam))
    for step in range(1, NUM_STEPS + 1):
        for found, gradient, (_, count, _) in zip(parts, muon_steps.gradients(step), SHAPES, strict=True):
            for part, share in zip(found, gradient.chunk(max(1, count)), strict=True):
                part.grad = share
        for optimizer in optimizers:
            optimizer.step()
    return [torch.cat([part.detach() for part in found]) for found in parts]


def first_step() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the undivided optimizer takes from a real model's parameters, and the gradients."""
    model, optimizer = muon_steps.real_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(*muon_steps.batch())[0].backward()
    given = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}, given


def launched(script: str, directory: Path, ranks: int) -> dict:
    """Return what rank 0 of `script` saves."""
    command = [sys.executable, *torchrun(ranks), script, str(directory / "found.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = forking.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    return torch.load(directory / "found.pt", weights_only=False)


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_divided_as_undivided(tmp_path: Path, ranks: int) -> None:
    check(launched(muon_steps.__file__, tmp_path, ranks), ranks)


def check(found: dict, ranks: int) -> None:
    """Bit by bit on the machines measured; what may differ is one rounding to bf16 of each step's update.

    The matrices that an owner makes orthogonal together are not those of one process, and a product of several may add
    in another order than that of one. A step that is taken per micro-batch is far outside, and so is a wrong element.
    """
    assert set(found) == set(muon_steps.CASES)
    ours, naive, theirs = undivided(), undivided(per_micro_batch=True), of_torch()
    for case, (values, first) in found.items():
        trained = Trained(*values)
        assert cuts_of(trained.held) == CUTS[ranks][case[0] == "3"], case
        assert set(trained.second_moments) == {4}
        assert trained.unskipped, case
        if case[0] == "3":  # several sub-groups, each with its own exchange
            assert len(trained.held[0]) > 3
        for which in (trained.weights, trained.accumulated):
            for weight, one, other, peer, (shape, count, _) in zip(which, ours, naive, theirs, SHAPES, strict=True):
                bound = 2.0**-8 * NUM_STEPS * RATE * matrices_of(0, shape, count)[0].scale if count else 1e-6
                torch.testing.assert_close(
                    weight, one, rtol=0, atol=bound, msg=lambda m, name=(case, shape): f"{name}: {m}"
                )
                torch.testing.assert_close(weight, peer, rtol=0, atol=bound)
                assert (weight - other).abs().mean() > 10 * bound
        if first is not None:
            check_band(first, case)


def check_band(found: dict[str, torch.Tensor], case: str) -> None:
    """Every matrix of the model moves by an orthogonal update: that of the undivided optimizer."""
    updates, given = first_step()
    model, optimizer = muon_steps.real_model()
    assert isinstance(optimizer, Muon)
    parameters = dict(model.named_parameters())
    assert {id(parameters[name]) for name in found} == {id(matrix) for matrix in stacked_matrices(model)}
    for name, update in found.items():
        torch.testing.assert_close(
            update, updates[name], rtol=0, atol=0.02, msg=lambda m, at=(case, name): f"{at}: {m}"
        )
        for matrix in matrices_of(0, update.shape, optimizer.stacked[parameters[name]]):
            rows = slice(matrix.offset // matrix.columns, matrix.offset // matrix.columns + matrix.rows)
            before = torch.linalg.svdvals(given[name][rows])
            reached = before / before.norm() > 0.003  # five steps do not raise what is next to nothing
            values = torch.linalg.svdvals(update[rows] / matrix.scale)
            assert values.max() < 1.3, (case, name)
            assert reached.sum() >= 4
            assert values[reached].min() > 0.5, (case, name)


def test_cuts_of_every_kind_are_in_the_fast_tier() -> None:
    for stage in range(2):
        assert CUTS[2][stage] | CUTS[3][stage] == ALL


def test_resumed_as_unbroken(tmp_path: Path) -> None:
    """From a checkpoint as it is, and through the form for any number of ranks; no second moment comes with either."""
    check_resumed(launched(muon_resumes.__file__, tmp_path, 2))


def check_resumed(found: dict) -> None:
    assert set(found) == {"1", "2", "3"}
    for case, table in found.items():
        for name in ("saved", "universal"):
            for weight, expected in zip(table[name], table["unbroken"], strict=True):
                assert torch.equal(weight, expected), (case, name)
        assert all(set(kept) == {4} for kept in table["kept"]), case
