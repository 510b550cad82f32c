"""Recipes: strict keys with the nearest name, types, extends, overrides, rules, and DeepSpeed files."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from cmbert.config.deepspeed import load_deepspeed_file, resolve_deepspeed
from cmbert.config.deepspeed_sections import SECTIONS
from cmbert.config.load import differing_keys, load_recipe, write_resolved
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError

ROOT = Path(__file__).parents[3]


def changed(recipe_file: Path, old: str, new: str) -> Path:
    text = recipe_file.read_text(encoding="utf-8")
    assert old in text
    recipe_file.write_text(text.replace(old, new), encoding="utf-8")
    return recipe_file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers = 3", "num_layer = 3", r"recipe.toml: model.num_layer: unknown key; did you mean 'num_layers'\?"),
        ("[schedule]", "[shedule]", r"shedule: unknown key; did you mean 'schedule'\?"),
        ("num_layers = 3", "", "model.num_layers: missing key"),
        ("num_layers = 3", 'num_layers = "3"', "model.num_layers: must be int, found '3'"),
        ("num_layers = 3", "num_layers = true", "model.num_layers: must be int, found True"),
        ("path =", "pth =", r"data.sources\[0\].pth: unknown key; did you mean 'path'"),
        ("[model]", '[model]\nnorm = "rmsnrm"', "model.norm: 'rmsnrm' is not one of .* did you mean 'rmsnorm'"),
        ("vocab_size = 384", "vocab_size = 390", "390 is not a multiple of 64 .* nearest: 384 or 448"),
        ("context_tokens = 64", "context_tokens = 9000", "9000 exceeds model.max_length 8192"),
        ("micro_batch_rows = 2", "micro_batch_rows = 0", "train.micro_batch_rows: 0 must be at least 1"),
        ("lr_max = 1e-3", "lr_max = 1e-3\nnum_cycles = 3", "schedule.gamma: must be at least lr_min / lr_max = 0.1"),
        (
            "lr_max = 1e-3",
            'lr_max = 1e-3\nkind = "linear"\ngamma = 0.5',
            "belong to damped_cosine, not to linear",
        ),
        ("lr_max = 1e-3", 'lr_max = 1e-3\nkind = "warmup_stable_decay"', "schedule.decay_tokens: must be positive"),
        ("lr_max = 1e-3", "lr_max = 1e-3\ndecay_tokens = 5", "belongs to kind warmup_stable_decay"),
        (
            "[schedule]",
            "[optimizer]\nmomentum = 0.9\n[schedule]",
            "optimizer.momentum: belongs to kind muon, not to stable",
        ),
        ("num_layers = 3", "num_layers = = 3", "not valid TOML"),
        (
            "[schedule]",
            "[kernels]\ncompiled = true\n[schedule]",
            "did you mean 'compile'",
        ),
        (
            "[schedule]",
            "[kernels]\nactivation_checkpoint_fraction = 28.0\n[schedule]",
            r"fraction: 28\.0 must be at least 0 and at most 1",
        ),
        ("[schedule]", '[kernels]\nnorm = "apex"\ncompile = true\n[schedule]', "kernels.norm: apex cannot be compiled"),
        ("[schedule]", "[[data.changes]]\nat_tokens = 512\nweights = [0.5, 0.5]\n[schedule]", "one weight for each"),
        ("[schedule]", "[[data.changes]]\nat_tokens = 512\nweights = [0.0]\n[schedule]", "not all zero"),
        (
            "[schedule]",
            "[[data.changes]]\nat_tokens = 0\nweights = [1.0]\n[schedule]",
            r"\[0\].at_tokens: 0 must be at least 1",
        ),
        ("[schedule]", "[[data.changes]]\nat_token = 1\nweights = [1.0]\n[schedule]", "did you mean 'at_tokens'"),
    ],
)
def test_mistakes_name_file_key_and_remedy(recipe_file: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(changed(recipe_file, old, new))
    assert "\n" not in str(caught.value)
    assert str(recipe_file) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such recipe"):
        load_recipe(tmp_path / "nowhere.toml")


def test_resolved_recipe_reads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    write_resolved(recipe, tmp_path / "resolved.toml")
    assert load_recipe(tmp_path / "resolved.toml") == recipe


def test_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.seed=7", "run_directory=some/where", "schedule.lr_max=1"])
    assert (recipe.train.seed, recipe.run_directory, recipe.schedule.lr_max) == (7, "some/where", 1.0)
    assert differing_keys(load_recipe(recipe_file), recipe) == ["run_directory", "schedule.lr_max", "train.seed"]
    with pytest.raises(ConfigError, match=r"train\.sed: unknown key; did you mean 'seed'"):
        load_recipe(recipe_file, ["train.sed=7"])
    with pytest.raises(ConfigError, match="must be key=value"):
        load_recipe(recipe_file, ["train.seed"])


def test_extends_states_only_what_differs(recipe_file: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text(f'extends = "{recipe_file}"\n[data]\ncontext_tokens = 128\n', encoding="utf-8")
    assert differing_keys(load_recipe(recipe_file), load_recipe(child)) == ["data.context_tokens"]
    changed(recipe_file, "run_directory", f'extends = "{child}"\nrun_directory')
    with pytest.raises(ConfigError, match="circle"):
        load_recipe(child)


def test_tables_nested_too_deeply_are_no_traceback(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: must be a table"):
        load_recipe(recipe_file, [f"model={'[' * 5_000}{']' * 5_000}"])
    recipe_file.write_text(f"model = {'[' * 5_000}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML: nested too deeply"):
        load_recipe(recipe_file)


@pytest.mark.parametrize("key", ["run_directory", "data.tokenizer", "train.deepspeed"])
@pytest.mark.parametrize(("text", "words"), [('""', "is empty"), ('" "', "is empty"), (r'"a\u0000b"', "holds a NUL")])
def test_a_path_is_not_empty(recipe_file: Path, key: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: {words}"):
        load_recipe(recipe_file, [f"{key}={text}"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"zero_optimisation": {"stage": 1}},
            "zero_optimisation: unknown top-level key .* did you mean 'zero_optimization'",
        ),
        ({"train_batch_size": 8}, "train_batch_size: the recipe owns this number; .* set train.rows_per_step"),
        ({"gradient_clipping": 1.0}, "the recipe owns this number; .* set optimizer.gradient_clip"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4 is not"),
        ({"fp16": {"enabled": True}}, "fp16 needs a loss scale and is not tested here; use bf16"),
        ({"checkpoint": {"load_universal": True}}, "checkpoints have one form here"),
        (
            {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp16"}},
            r"grad_accum_dtype: 'fp16' is neither fp32 nor what the gradients are \(bf16\)",
        ),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: True is not 1, 2 or 3"),
        ({"zero_optimization": {"stage": 1.0}}, "zero_optimization.stage: 1.0 is not 1, 2 or 3"),
        ({"zero_optimization": {"stage": "1"}}, "zero_optimization.stage: '1' is not 1, 2 or 3"),
        ({"zero_optimization": 1}, "zero_optimization.stage: 1 is not 1, 2 or 3; .*|must be an object"),
        ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "unknown key; did you mean 'overlap_comm'"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}},
            "reduce_bucket_size: -1 must be a whole number",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            "offload_optimizer.device: 'gpu' must",
        ),
        (
            {"zero_optimization": {"stage": 1}, "bf16": {"enabled": "false"}},
            "bf16.enabled: 'false' must be true or false",
        ),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": 1}}, "bf16.enabled: 1 must be true or false"),
        ({"zero_optimization": {"stage": 1}, "bf16": True}, "bf16: True must be an object"),
        ({"zero_optimization": {"stage": 1}, "timers": []}, r"timers: \[\] must be an object"),
        (
            {"zero_optimization": {"stage": 1}, "communication_data_type": "fp8"},
            "communication_data_type: 'fp8' must be one",
        ),
        (
            {"zero_optimization": {"stage": 1}, "gradient_predivide_factor": float("nan")},
            "predivide_factor: nan must be a",
        ),
        ([], "must be a JSON object"),
    ],
)
def test_deepspeed_files_are_checked(tmp_path: Path, table: object, message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_deepspeed_file(path)


def test_the_sections_are_deepspeeds(tmp_path: Path) -> None:
    """Another version of DeepSpeed, with other keys, is noticed here, not by a traceback on the cluster."""
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    offload = pytest.importorskip("deepspeed.runtime.zero.offload_config")
    bf16 = pytest.importorskip("deepspeed.runtime.precision_config").DeepSpeedBF16Config
    comms = pytest.importorskip("deepspeed.comm.config").CommsLoggerConfig
    ours = SECTIONS["zero_optimization"]
    for model, known in (
        (zero, ours),
        (offload.DeepSpeedZeroOffloadParamConfig, ours["offload_param"]),
        (offload.DeepSpeedZeroOffloadOptimizerConfig, ours["offload_optimizer"]),
        (bf16, SECTIONS["bf16"]),
        (comms, SECTIONS["comms_logger"]),
    ):
        names = set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}
        assert known.keys() == names, model


def test_deepspeed_does_not_wait_for_the_device_unless_its_file_says_so(recipe_file: Path, tmp_path: Path) -> None:
    def resolved(**table: object) -> dict:
        (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, **table}), encoding="utf-8")
        return resolve_deepspeed(load_recipe(recipe_file), 1)

    assert resolved()["timers"] == {"throughput": {"enabled": False}}
    assert resolved()["gradient_clipping"] == 0.0  # ours clips on the device
    assert resolved(bf16={"enabled": True})["bf16"] == {"check_grad_overflow": False, "enabled": True}
    own = {"bf16": {"enabled": True, "check_grad_overflow": True}, "timers": {"throughput": {"enabled": True}}}
    assert {key: resolved(**own)[key] for key in own} == own


def test_the_batch_must_divide_over_the_ranks(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert resolve_deepspeed(recipe, 2)["gradient_accumulation_steps"] == 2
    with pytest.raises(ConfigError, match=r"8 rows do not divide over 3 GPUs .ranks.; nearest that work: 2 or 4 GPUs$"):
        resolve_deepspeed(recipe, 3)


def test_the_blend_may_change(recipe_file: Path) -> None:
    changes = (
        "[[data.changes]]\nat_tokens = 512\nweights = [1.0]\n[[data.changes]]\nat_tokens = 1024\nweights = [2.0]\n"
    )
    recipe = load_recipe(changed(recipe_file, "[schedule]", f"{changes}[schedule]"))
    assert [(change.at_tokens, change.weights) for change in recipe.data.changes] == [(512, (1.0,)), (1024, (2.0,))]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.window_rows", "shuffle_block_rows"),
        ("data.group_windows", "shuffle_blocks"),
        ("mask.mask_share", "mask_prob"),
        ("mask.random_share", "random_prob"),
        ("schedule.num_swings", "num_cycles"),
        ("train.rolling_every_steps", "ephemeral_every_steps"),
        ("kernels.checkpointed_share", "activation_checkpoint_fraction"),
    ],
)
def test_a_renamed_key_is_refused_with_its_name_today(old: str, new: str, recipe_file: Path) -> None:
    section = old.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"recipe\.toml: {re.escape(old)}: is called {new!r} now; rename it"):
        load_recipe(recipe_file, [f"{old}=1"])
    assert new in {item.name for item in fields(next(f.type for f in fields(Recipe) if f.name == section))}


def test_a_shipped_deepspeed_file_goes_by_name_from_anywhere(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path = load_recipe(recipe_file, [f"train.deepspeed={ROOT / 'ds_configs' / 'zero1.json'}"])
    by_name = load_recipe(recipe_file, ["train.deepspeed=zero1"])
    other = load_recipe(recipe_file, ["train.deepspeed=zero2"])
    monkeypatch.chdir(tmp_path)
    assert resolve_deepspeed(by_name, 1) == resolve_deepspeed(by_path, 1)
    assert differing_keys(by_path, by_name) == differing_keys(by_name, by_path) == []  # a run goes on under either
    assert differing_keys(by_name, other) == ["train.deepspeed"]
    with pytest.raises(ConfigError, match=r"no shipped DeepSpeed file is called 'zero4'; there are zero1, zero2, "):
        load_deepspeed_file("zero4")
    with pytest.raises(ConfigError, match=r"ds_configs/zero1\.json: no such DeepSpeed file; .* by name, .*: zero1, "):
        load_deepspeed_file("ds_configs/zero1.json")


def test_what_a_recipe_extends_is_looked_for_as_every_path_is(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.toml"
    child.write_text('extends = "recipe.toml"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(child)
    assert str(caught.value).startswith(f"{child}: extends: no recipe.toml in the working directory")
    right = re.search(r'extends = ".*"', str(caught.value))
    child.write_text(right[0], encoding="utf-8")  # what the message says to write
    assert load_recipe(child) == load_recipe(recipe_file)
    child.write_text('extends = "recipe.toml"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(child) == load_recipe(recipe_file)
