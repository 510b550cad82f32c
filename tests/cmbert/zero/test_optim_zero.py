"""The optimizer on ZeRO's flat partitions is the undivided one: stages 1, 2, 3 at 1, 2 and 3 ranks."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests import forking
from tests.cmbert.zero import zero_steps
from tests.integration.launching import torchrun


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_divided_as_undivided(tmp_path: Path, ranks: int) -> None:
    command = [sys.executable, *torchrun(ranks), zero_steps.__file__, str(tmp_path / "found.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = forking.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 6
    for (stage, clip_updates), weights in found.items():
        model = zero_steps.Weights()
        optimizer = zero_steps.AdamW(zero_steps.groups(model), clip_updates=clip_updates, **zero_steps.SETTINGS)
        for step in range(1, zero_steps.NUM_STEPS + 1):
            model(zero_steps.gradients(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        for weight, expected in zip(weights, model.all, strict=True):
            message = f"ZeRO {stage}, clip_updates {clip_updates}: {weight} is not {expected}"
            torch.testing.assert_close(
                weight, expected.detach(), rtol=1e-6, atol=1e-6, msg=lambda text, name=message: f"{name}: {text}"
            )
    assert not torch.equal(found[1, True][0], found[1, False][0])
