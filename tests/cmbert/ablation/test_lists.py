"""Lists of arms: the shipped ones are sound, budgets are equal, mistakes are one line."""

from pathlib import Path

import pytest

from cmbert.ablation.lists import load_list, plan_runs, resolve_shares
from cmbert.ablation.tables import differences_of
from cmbert.errors import ConfigError

FOLDER = Path("recipes/ablations")
BASES = ("common", "small", "short", "medium", "size_128", "size_256", "size_384", "muon_256", "word_boundary")
SHIPPED = sorted(path for path in FOLDER.glob("*.toml") if path.stem not in BASES)
OWN_SHARDS = ("vocabulary", "vocabulary_32k", "straddling", "bilingual")  # from tokenizers of their own
SHORT = ("batch_ramp", "tiling")  # on recipes/ablations/short.toml


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_lists(path: Path, tmp_path: Path) -> None:
    ablation = load_list(path)
    runs = plan_runs(ablation, path, tmp_path, ablation.seeds)
    rated = [arm for arm in ablation.arms if arm.learning_rates]
    assert (
        len(runs) == sum(len(arm.learning_rates) for arm in rated) + (len(ablation.arms) - len(rated)) * ablation.seeds
    )
    budget = 10_000_000_000 if path.stem.endswith("_32k") else 400_000 if path.stem in SHORT else 3_000_000
    budgets = {4_500_000, 2_250_000} if path.stem == "optimizer" else {budget}
    assert {sum(stage.train.total_tokens for stage in run.stages) for run in runs} == budgets
    first = list({run.arm: run for run in reversed(runs)}.values())[::-1]
    told = [differences_of(run.stages, first[0].stages) for run in first]
    assert told[0] == "–"
    assert len(set(told)) == len(told)  # no two arms are the same training
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert ablation.prepare[0].startswith("data_tools ")


@pytest.mark.parametrize("width", [128, 256, 384])
def test_the_sizes_of_one_question(width: int, tmp_path: Path) -> None:
    """Heads 64 wide, a warm-up of 2 %, ten held-out scores, fresh weights that shrink with the width."""
    path = FOLDER / "optimizer.toml"
    ablation = load_list(path, base=FOLDER / f"size_{width}.toml")
    for run in plan_runs(ablation, path, tmp_path, 1):
        (recipe,) = run.stages
        tokens, model = recipe.train.total_tokens, recipe.model
        assert (model.hidden_size, model.num_heads, model.intermediate_size) == (width, width // 64, 2 * width)
        assert recipe.schedule.warmup_tokens == recipe.mask.warmup_tokens == tokens // 50
        assert model.init_std == pytest.approx(0.08 * (128 / width) ** 0.5, rel=0.01)
        scores = tokens / (recipe.train.rows_per_step * recipe.data.context_tokens) / recipe.evaluation.every_steps
        assert scores == pytest.approx(5 if run.arm == "muon-half" else 10, rel=0.01)


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.stem not in OWN_SHARDS], ids=lambda path: path.stem)
def test_shipped_lists_on_gpus(path: Path, tmp_path: Path) -> None:
    ablation = load_list(path, base=FOLDER / "medium.toml")
    assert ablation.prepare == ()
    runs = plan_runs(ablation, path, tmp_path, 1)
    budgets = {10_000_000_000, 5_000_000_000} if path.stem == "optimizer" else {10_000_000_000}
    assert {sum(stage.train.total_tokens for stage in run.stages) for run in runs} == budgets


def test_seeds_folders_and_the_second_stage(recipe_file: Path, tmp_path: Path) -> None:
    path = write_list(
        tmp_path,
        recipe_file,
        'set.train = { total_tokens = "75 %" }\nthen.train = { total_tokens = "25 %" }\n'
        "then.schedule = { lr_max = 5e-4 }",
    )
    first, second = plan_runs(load_list(path), path, tmp_path / "out", 2)[1:3]
    one, two = second.stages if second.arm == "b" else first.stages
    assert (one.train.total_tokens, two.train.total_tokens) == (6144, 2048)
    assert (one.schedule.lr_max, two.schedule.lr_max) == (1e-3, 5e-4)
    assert two.train.init_from == one.run_directory == str(tmp_path / "out" / "b" / "seed0" / "stage1")
    seeds = {(run.arm, run.seed): run.stages[0].train.seed for run in plan_runs(load_list(path), path, tmp_path, 2)}
    assert seeds == {("a", 0): 0, ("b", 0): 0, ("a", 1): 1, ("b", 1): 1}


def test_shares_are_of_token_counts_alone() -> None:
    table = {"schedule": {"decay_tokens": "12.5 %", "lr_max": 1}, "data": {"tokenizer": "20 %"}}
    assert resolve_shares(table, 8000, "x") == {
        "schedule": {"decay_tokens": 1000, "lr_max": 1},
        "data": {"tokenizer": "20 %"},
    }


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("set.train = { total_tokens = 4096 }", "trains on 4,096 tokens, the base recipe on 8,192"),
        ('set.schedule = { decay_tokens = "a fifth" }', "'a fifth' is neither a number of tokens nor a share"),
        (f'set.schedule = {{ decay_tokens = "{"9" * 400} %" }}', "is neither a number of tokens nor a share"),
        ("set.mask = { peak_rat = 0.3 }", "mask.peak_rat: unknown key; did you mean 'peak_rate'"),
        ("set.mask = { peak_rate = 1.3 }", "b: mask.peak_rate: 1.3 must be above 0 and below 1"),
        ('set.evaluation = { shards = "" }', "evaluation.shards: name the held-out set"),
        ("sett.mask = { peak_rate = 0.3 }", "sett: unknown key; did you mean 'set'"),
        ('[[arms]]\nname = "a"\nwhat = "again"', "two are named 'a'"),
        ('[[arms]]\nname = "a b"\nwhat = "again"', "name 'a b' is no folder name"),
    ],
)
def test_mistakes(recipe_file: Path, tmp_path: Path, arm: str, message: str) -> None:
    path = write_list(tmp_path, recipe_file, arm)
    with pytest.raises(ConfigError, match=message) as caught:
        plan_runs(load_list(path), path, tmp_path / "out", 1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("contexts = [64, 8]", "contexts: 8 must be at least 16 tokens"),
        ("contexts = [-1]", "contexts: -1 must be at least 16 tokens"),
        ("units = []", "units: name what the final score hides"),
        ("seeds = 0", "seeds: 0 must be 1 or more"),
    ],
)
def test_what_the_last_step_would_refuse_is_refused_first(
    recipe_file: Path, tmp_path: Path, line: str, message: str
) -> None:
    path = write_list(tmp_path, recipe_file, "")
    path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_list(path)


def test_without_contexts_all_arms_are_scored_as_the_base_recipe_is_trained(recipe_file: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path, recipe_file, "set.data = { context_tokens = 128 }")
    assert load_list(path).contexts == (64,)
    (tmp_path / "longer.toml").write_text(
        f'extends = "{tmp_path}/base.toml"\n[data]\ncontext_tokens = 256\n', encoding="utf-8"
    )
    assert load_list(path, tmp_path / "longer.toml").contexts == (256,)


def write_list(folder: Path, recipe_file: Path, arm: str) -> Path:
    """Write a list of an arm "a" that is the base recipe, and "b" that differs by `arm`."""
    recipe = recipe_file.read_text(encoding="utf-8") + f'\n[evaluation]\nshards = "{folder}/heldout"\n'
    (folder / "base.toml").write_text(recipe, encoding="utf-8")
    path = folder / "list.toml"
    path.write_text(
        f'base = "{folder}/base.toml"\nquestion = "Which?"\n[[arms]]\nname = "a"\nwhat = "base"\n'
        f'[[arms]]\nname = "b"\nwhat = "other"\n{arm}\n',
        encoding="utf-8",
    )
    return path
