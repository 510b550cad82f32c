"""What the plan refuses: one line each, and the nearest setting that it names is one that works."""

import re
from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.errors import ConfigError, ShardError
from cmbert.plan.assumptions import Assumptions
from cmbert.plan.plan import make_plan

LARGE = Path(__file__).parents[3] / "recipes" / "large" / "stage1.toml"


def refusal(recipe_file: Path, overrides: list[str], num_gpus: int, **assumed: float) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(recipe_file, overrides), num_gpus, Assumptions(**assumed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("num_gpus", "message"),
    [
        (0, "--gpus: 0 must be at least 1"),
        (3, "8 rows do not divide over 3 GPUs .* nearest that work: 2 or 4 GPUs$"),
        (9, "nearest that work: 8 GPUs$"),
    ],
)
def test_a_batch_that_does_not_divide(recipe_file: Path, num_gpus: int, message: str) -> None:
    assert re.search(message, refusal(recipe_file, [], num_gpus))


def test_the_batch_it_names_works(recipe_file: Path) -> None:
    for num_gpus in (2, 4, 8):
        make_plan(load_recipe(recipe_file), num_gpus)


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "gigabytes", "settings"),
    [
        ([], 56, 14.0, ["train.micro_batch_rows=8"]),
        ([], 64, 14.0, ["train.micro_batch_rows=7"]),
        (["train.micro_batch_rows=1"], 8, 4.4, ["kernels.activation_checkpoint_fraction=0.25"]),
        (["train.micro_batch_rows=1"], 8, 3.9, ["kernels.activation_checkpoint_fraction=0.75"]),
        ([], 8, 3.64, ["train.micro_batch_rows=1", "kernels.activation_checkpoint_fraction=1", "ZeRO 2"]),
        ([], 1, 8.0, ["2 GPUs", "train.micro_batch_rows=1", "kernels.activation_checkpoint_fraction=1", "ZeRO 1"]),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], num_gpus: int, gigabytes: float,
    settings: list[str],
) -> None:  # fmt: skip
    file = tmp_path / "ds.json"

    def deepspeed(stage: int) -> str:
        file.write_text(f'{{"bf16": {{"enabled": true}}, "zero_optimization": {{"stage": {stage}}}}}', encoding="utf-8")
        return f"train.deepspeed={file}"

    monkeypatch.chdir(tmp_path)
    message = refusal(LARGE, [deepspeed(1), *overrides], num_gpus, gpu_memory_gb=gigabytes)
    assert f"--gpu-memory-gb {gigabytes:g}" in message
    for setting in settings:
        assert setting.replace("=", " = ") in message.partition("nearest that fits: ")[2], message
    stage = next((int(setting[-1]) for setting in settings if setting.startswith("ZeRO")), 1)
    gpus = next((int(setting.split()[0]) for setting in settings if setting.endswith("GPUs")), num_gpus)
    named = [setting for setting in settings if "=" in setting]
    make_plan(load_recipe(LARGE, [*overrides, deepspeed(stage), *named]), gpus, Assumptions(gpu_memory_gb=gigabytes))


def test_a_model_that_fits_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 3}}', encoding="utf-8")
    overrides = [f"train.deepspeed={file}", "kernels.compile=false"]
    assert "larger GPUs or a smaller model" in refusal(LARGE, overrides, 8, gpu_memory_gb=1.0)


def test_too_many_epochs(recipe_file: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text.replace("\n[schedule]", "\nmax_epochs = 3\n[schedule]"), encoding="utf-8")
    message = refusal(recipe_file, ["train.total_tokens=100_000_000"], 2)
    assert "would be read" in message
    tokens = re.search(r"nearest that works: train.total_tokens = ([\d_]+)$", message)
    assert tokens is not None
    plan = make_plan(load_recipe(recipe_file, [f"train.total_tokens={tokens[1]}"]), 2)
    assert plan.sources[0].epochs is not None
    assert 2.9 < plan.sources[0].epochs <= 3


def test_a_vocabulary_that_is_not_the_tokenizers(recipe_file: Path) -> None:
    assert re.search(
        "model.vocab_size: 448, but .* has 384 ids; write vocab_size = 384 in .*, or add --set model.vocab_size=384$",
        refusal(recipe_file, ["model.vocab_size=448"], 2),
    )


def test_a_context_longer_than_rope_is_planned_for(recipe_file: Path) -> None:
    overrides = ["data.context_tokens=16_384", "train.total_tokens=1_000_000"]
    message = refusal(recipe_file, overrides, 2)
    assert ("data.context_tokens: 16384 exceeds model.max_length 8192") in message
    assert "nearest that works: 8192, or raise model.max_length" in message
    load_recipe(recipe_file, [*overrides, "data.context_tokens=8192"])
    load_recipe(recipe_file, [*overrides, "model.max_length=16_384"])


def test_checkpoints_too_rare_to_advance(recipe_file: Path) -> None:
    message = refusal(LARGE, [], 8, node_mtbf_hours=0.2)
    best = re.search(r"the stage would not end; best: train.checkpoint_every_steps = (\d+)$", message)
    assert best is not None
    settings = [f"train.checkpoint_every_steps={best[1]}"]
    make_plan(load_recipe(LARGE, settings), 8, Assumptions(node_mtbf_hours=0.2))


def test_shards_of_another_tokenizer_are_refused(recipe_file: Path, tmp_path: Path, tokenizer_directory: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ShardError, match="made with tokenizer"):
        make_plan(load_recipe(recipe_file, [f"data.tokenizer={other}"]), 2)


def test_a_source_that_no_row_comes_from(recipe_file: Path, shards: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    sources = f'weight = 1.0\nmax_epochs = 1e9\n[[data.sources]]\npath = "{shards}"\nweight = 1e-9\n'
    recipe_file.write_text(text.replace("\n[schedule]", f"\n{sources}\n[schedule]"), encoding="utf-8")
    message = refusal(recipe_file, [], 2)
    assert re.search(rf"data.sources: {shards} would give .*e-0\d rows of the run's [\d,]+, so none", message)
    assert "nearest that works" not in message
