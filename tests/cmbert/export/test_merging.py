"""Merged checkpoints: the naive mean, scored as `cmbert eval` does, in a folder that everything takes as a model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmbert.checkpoint.files import MANIFEST_FILE, WEIGHTS_FILE, describe_file
from cmbert.checkpoint.weights import load_weights
from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.errors import CheckpointError
from cmbert.export.lineage import read_lineage
from cmbert.export.merging import RunningMean
from cmbert.export.release import open_model
from cmbert.files.folders import asides
from cmbert.model.folder import read_weights
from cmbert.model.heads import DECODER, MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.runs.directory import find_resume
from cmbert.runs.merged import read_merge
from cmbert.train.starting_weights import check_starting_weights, starting_model
from cmbert.transfer.finetune.backbone import open_backbone
from tests.conftest import leave_run

STEPS = (4, 8, 16)


@pytest.fixture
def run(recipe_file: Path, other_shards: Path) -> Path:
    """A run with checkpoints of weights alone: what a trained one's ZeRO files say once they are consolidated."""
    recipe = load_recipe(recipe_file, [f"evaluation.shards={other_shards}", "evaluation.every_steps=4"])
    for step in STEPS:
        checkpoint = leave_run(recipe, step) / "checkpoints" / f"step_{step:09d}"
        model = MaskedLanguageModel(recipe.model)
        initialise(model, seed=step)
        weights = {name: weight for name, weight in model.state_dict().items() if name != DECODER}
        save_file(weights, checkpoint / WEIGHTS_FILE)
        names = (WEIGHTS_FILE, "state.json")
        manifest = {name: describe_file(checkpoint / name) for name in names}
        (checkpoint / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return Path(recipe.run_directory)


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:09d}"


def merge(run: Path, output: Path, *options: str, steps: str = "4,8,16") -> int:
    return main(["merge-checkpoints", str(run), "--steps", steps, "--output", str(output), *options])


def naive_mean(run: Path, weights: tuple[float, ...]) -> dict[str, torch.Tensor]:
    tables = [load_weights(checkpoint_of(run, step)) for step in STEPS]
    return {
        name: (sum(w * table[name].double() for w, table in zip(weights, tables, strict=True)) / sum(weights)).float()
        for name in tables[0]
    }


@pytest.mark.parametrize(
    ("options", "steps", "weights"),
    [
        ((), "4,8,16", (1.0, 1.0, 1.0)),
        (("--weights", "1,2,3"), "4,8,16", (1.0, 2.0, 3.0)),
        (("--weights", "6,2,4"), "16,4,8", (1.0, 2.0, 3.0)),  # weights follow the steps; their sum need not be 1
    ],
)
def test_the_merged_weights_are_the_naive_mean(
    run: Path, tmp_path: Path, options: tuple[str, ...], steps: str, weights: tuple[float, ...]
) -> None:
    assert merge(run, tmp_path / "merged", *options, steps=steps) == 0
    found, expected = load_weights(tmp_path / "merged"), naive_mean(run, weights)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight), name
    said = read_merge(tmp_path / "merged")
    assert said is not None
    assert [part["share"] for part in said["steps"]] == pytest.approx([weight / sum(weights) for weight in weights])
    assert not asides(tmp_path / "merged")


def test_sums_are_rounded_once() -> None:
    """In fp32 the small ones would be lost, one after the other."""
    mean = RunningMean()
    for value in (1.0, *[2.0**-25] * 1023):
        mean.add([("w", torch.tensor([value]))], 1.0)
    assert torch.equal(mean.take()["w"], torch.tensor([(1.0 + 1023 * 2.0**-25) / 1024]))


def test_the_same_bytes_twice(run: Path, tmp_path: Path) -> None:
    for name, steps in (("one", "4,8,16"), ("two", "16,8,4")):
        assert merge(run, tmp_path / name, steps=steps) == 0
    files = [sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*")) for name in ("one", "two")]
    assert files[0] == files[1]
    for file in files[0]:
        if (tmp_path / "one" / file).is_file():
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_every_score_is_what_eval_prints(
    run: Path, tmp_path: Path, other_shards: Path, shards: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, options, data in (("own", (), other_shards), ("given", ("--data", str(shards)), shards)):
        assert merge(run, tmp_path / name, *options) == 0
        said = capsys.readouterr().out
        rows = re.findall(r"^\| (\w+) +\| +([\d.]+) \| +([\d.]+) % \| +([+-][\d.]+) \|$", said, re.MULTILINE)
        assert [row[0] for row in rows] == ["4", "8", "16", "merged"]
        models = [*(checkpoint_of(run, step) for step in STEPS), tmp_path / name]
        for model, (_, loss, accuracy, difference) in zip(models, rows, strict=True):
            assert main(["eval", str(model), "--data", str(data)]) == 0
            printed = capsys.readouterr().out
            assert re.search(r"held-out loss +([\d.]+)", printed)[1] == loss
            assert re.search(r"masked accuracy +([\d.]+)", printed)[1] == accuracy
            assert float(difference) == pytest.approx(float(loss) - float(rows[2][1]), abs=1.1e-4)
        assert f"written to {tmp_path / name}\n" in said


def test_the_folder_is_a_model_for_everything(
    run: Path, tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    merged = tmp_path / "merged"
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    assert merge(run, merged, "--weights", "1,1,2") == 0
    shutil.rmtree(run)
    expected = load_weights(merged)

    assert main(["export", str(merged), "--output", str(tmp_path / "export")]) == 0
    exported = read_weights(tmp_path / "export")
    assert all(torch.equal(weight, expected[name]) for name, weight in exported.items())
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "| weights | the mean of those after steps 4 (25 %), 8 (25 %), 16 (50 %) of run |" in card
    assert re.search(r"\| 16 \| [\d.]+ \| [\d.]+ \|\n\| merged \| [\d.]+ \| [\d.]+ \|", card)
    assert "Not evaluated" not in card

    recipe = load_recipe(recipe_file, [f"train.init_from={merged}", f"run_directory={tmp_path}/next"])
    check_starting_weights(recipe)
    start = starting_model(recipe).state_dict()
    assert f"weights of {merged} (merged from steps 4 (25 %), 8 (25 %), 16 (50 %) of run)" in capsys.readouterr().out
    assert all(torch.equal(weight, expected[name]) for name, weight in start.items())
    assert [stage.name for stage in read_lineage(merged).stages] == ["merged"]

    assert open_model(merged).context_tokens == recipe.data.context_tokens
    encoder = open_backbone(str(merged), untrained=False, trust=False).encoder.state_dict()
    assert all(torch.equal(weight, expected[f"model.{name}"]) for name, weight in encoder.items())


def test_a_mistake_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, other_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(*words: str) -> str:
        try:
            code = main(["merge-checkpoints", *words])
        except SystemExit as end:
            code = end.code
        assert code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "merged").exists()
        assert not asides(tmp_path / "merged")
        return error

    to = ("--output", str(tmp_path / "merged"))
    assert "no checkpoint of step 12; there are those of 4, 8, 16" in refused(str(run), "--steps", "4,12", *to)
    assert "--steps: names step 8 twice" in refused(str(run), "--steps", "8,4,8", *to)
    assert "two steps or more" in refused(str(run), "--steps", "8", *to)
    assert "--weights: 3 for 2 steps" in refused(str(run), "--steps", "4,8", "--weights", "1,2,3", *to)
    for weights in ("0,0", "1,-1", "1,0", "nan,1"):
        assert "must be positive" in refused(str(run), "--steps", "4,8", f"--weights={weights}", *to)
    assert f"{tmp_path}: not a run directory" in refused(str(tmp_path), "--steps", "4,8", *to)
    assert "no manifest.json" in refused(str(run), "--steps", "4,8", "--data", str(tmp_path), *to)
    assert f"{run} exists" in refused(str(run), "--steps", "4,8", "--output", str(run))
    recipe = run / "resolved.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(other_shards), ""), encoding="utf-8")
    assert "names no held-out set (evaluation.shards); name one: --data DIR" in refused(str(run), "--steps", "4,8", *to)
    file = checkpoint_of(run, 8) / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    said = refused(str(run), "--steps", "4,8", "--data", str(other_shards), *to)
    assert f"{file}: does not match its hash: changed" in said


def test_no_training_goes_on_in_or_from_it(run: Path, tmp_path: Path, recipe_file: Path) -> None:
    merged = tmp_path / "merged"
    assert merge(run, merged) == 0
    recipe = load_recipe(recipe_file, [f"run_directory={tmp_path}/new"])
    with pytest.raises(CheckpointError, match=r"weights alone, nothing to train on from; .*train\.init_from"):
        find_resume(recipe, str(merged))
    with pytest.raises(CheckpointError, match="holds weights alone, no run"):
        find_resume(load_recipe(recipe_file, [f"run_directory={merged}"]), "auto")
