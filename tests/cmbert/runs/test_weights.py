"""Whatever takes a run's weights says which checkpoint it took, and what it passed over."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.errors import CheckpointError
from cmbert.export import release
from cmbert.runs.weights import choose_weights
from cmbert.train import starting_weights
from cmbert.transfer.embedding.run import encoder_folder
from cmbert.transfer.finetune.backbone import open_backbone
from tests.conftest import leave_run


@pytest.mark.parametrize(
    ("step", "named", "damaged", "said"),
    [
        (16, "run", "", "step 16 of 16, the run's last"),
        (6, "run", "", "step 6 of 16, the newest: the run is not finished"),
        (6, "checkpoint", "step_000000016.damaged", "step 6 of 16"),
        (6, "run", "step_000000004.damaged", "step 6 of 16, the newest: the run is not finished"),
        (
            6,
            "run",
            "step_000000016.damaged.2",
            "step 6 of 16, the newest: the run is not finished; newer, but damaged: step_000000016.damaged.2",
        ),
    ],
)
def test_the_choice_is_said_once(
    recipe_file: Path, caplog: pytest.LogCaptureFixture, step: int, named: str, damaged: str, said: str
) -> None:
    run = leave_run(load_recipe(recipe_file), step)
    checkpoint = run / "checkpoints" / f"step_{step:09d}"
    if damaged:
        (run / "checkpoints" / damaged).mkdir()
    with caplog.at_level(logging.INFO, "cmbert"):
        for _ in range(2):
            assert choose_weights(run if named == "run" else checkpoint) == checkpoint
    assert caplog.messages == [f"weights of {checkpoint} ({said})"]


def start_from(run: Path) -> object:
    recipe = load_recipe(run.parent / "recipe.toml")
    return starting_weights.starting_model(
        dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, init_from=str(run)))
    )


COMMANDS: dict[str, Callable[[Path], object]] = {
    "train": start_from,
    "eval": lambda run: main(["eval", str(run), "--data", str(run)]),
    "export": lambda run: main(["export", str(run), "--output", str(run.parent / "export")]),
    "finetune": lambda run: open_backbone(str(run), untrained=False, trust=False),
    "embed-train": lambda run: encoder_folder(str(run), run.parent),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_it(
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    command: str,
) -> None:
    def load(checkpoint: Path) -> dict:
        raise CheckpointError(f"read {checkpoint}")

    for module in (release, starting_weights):
        monkeypatch.setattr(module, "load_weights", load)
    run = leave_run(load_recipe(recipe_file), 6)
    caplog.set_level(logging.INFO, "cmbert")
    try:
        code, error = COMMANDS[command](run), ""
    except CheckpointError as refused:
        code, error = 2, str(refused)
    output = "\n".join([*caplog.messages, *capsys.readouterr(), error])
    checkpoint = run / "checkpoints" / "step_000000006"
    assert code == 2
    assert f"weights of {checkpoint} (step 6 of 16, the newest: the run is not finished)" in output
    assert f"read {checkpoint}" in output
