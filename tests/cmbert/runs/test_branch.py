"""Which branches may be, and the one line that says what to mend; nothing is trained here."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cmbert.checkpoint.state import read_state
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.sources import check_epochs, open_blend
from cmbert.errors import CheckpointError, CmbertError, ConfigError
from cmbert.runs.branch import Branch, check_branch, find_branch, keep_branch, read_branch, state_in_branch
from cmbert.runs.directory import check_belongs, find_resume
from cmbert.runs.going_on import how_to_train_further
from cmbert.tokenizer import Tokenizer
from tests.conftest import leave_run

AT, ROWS = 8, 64  # the step of the parent's checkpoint, and the rows that it has read
CHANGE = "data.changes=[{at_tokens=4096, weights=[0, 1]}]"
EARLIER = "data.changes=[{at_tokens=512, weights=[0, 1]}]"


@pytest.fixture
def parent(recipe_file: Path, tokenizer: Tokenizer) -> Path:
    """A run whose checkpoint of step 8 says what it read."""
    recipe = load_recipe(recipe_file)
    run = leave_run(recipe, AT)
    checkpoint = run / f"checkpoints/step_{AT:09d}"
    blend = open_blend(recipe.data, tokenizer, 0)
    read = {"shard_fingerprints": [blend.sources[0].shards.fingerprint], "source_rows": [ROWS]}
    state = dataclasses.asdict(dataclasses.replace(read_state(checkpoint), **read))
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return run


def recipe_of(recipe_file: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe_file, [f"run_directory={recipe_file.parent}/branch", *overrides])


def begin(recipe: Recipe, asked: str) -> Branch:
    branch = find_branch(recipe, asked)
    assert branch is not None
    check_branch(recipe, branch)
    return branch


def begun(recipe: Recipe, parent: Path) -> Branch:
    return begin(recipe, f"{parent}@{AT}")


def refusal(recipe: Recipe, asked: str) -> str:
    """Return the line with which a branch is refused."""
    with pytest.raises(CmbertError) as refused:
        begin(recipe, asked)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("{0}", "--branch {0}: must be RUN@STEP, a run and a step of it; {0} has checkpoints of step 8"),
        ("{0}@", "--branch {0}@: must be RUN@STEP, a run and a step of it; {0} has checkpoints of step 8"),
        ("{0}@last", "--branch {0}@last: must be RUN@STEP"),
        ("@8", "--branch @8: must be RUN@STEP"),
        ("{0}@9", "--branch {0}@9: no checkpoint of step 9 there; {0} has checkpoints of step 8"),
        ("{0}-x@8", "{0}-x: not a run directory (no resolved.toml); name one that `cmbert train` made"),
    ],
)
def test_a_step_that_is_none(recipe_file: Path, parent: Path, asked: str, said: str) -> None:
    assert refusal(recipe_of(recipe_file), asked.format(parent)).startswith(said.format(parent))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_layers=1", "num_layers is 3 there and 1 here; a branch keeps what it begins with: set it back"),
        ("optimizer.kind=adamw", "optimizer.kind is \"stable_adamw\" there and \"adamw\" here"),
        ("optimizer.weight_decay=0.5", "optimizer.weight_decay is 0.01 there and 0.5 here"),
        ("data.context_tokens=32", "data.context_tokens is 64 there and 32 here"),
        ("data.shuffle_blocks=3", "data.shuffle_blocks is "),
        ("train.seed=1", "train.seed is 0 there and 1 here"),
        ("train.init_from=elsewhere", "train.init_from: 'elsewhere', but --branch takes weights and optimizer from"),
        ("train.total_tokens=4096", "train.total_tokens: 4,096 end with step 8, and the branch begins after step 8"),
        ("train.rows_per_step=4", "train.rows_per_step: 8 steps of this recipe are 2,048 tokens, and of"),
    ],
)  # fmt: skip
def test_a_recipe_that_its_checkpoint_does_not_fit(recipe_file: Path, parent: Path, override: str, said: str) -> None:
    assert said in refusal(recipe_of(recipe_file, override), f"{parent}@{AT}")


def test_another_tokenizer(recipe_file: Path, parent: Path, tmp_path: Path) -> None:
    state_file = parent / f"checkpoints/step_{AT:09d}/state.json"
    state = json.loads(state_file.read_text(encoding="utf-8"))
    state_file.write_text(json.dumps(state | {"tokenizer_fingerprint": "another"}), encoding="utf-8")
    assert "data.tokenizer: " in refusal(recipe_of(recipe_file), f"{parent}@{AT}")


def test_whose_directory_it_is(recipe_file: Path, parent: Path) -> None:
    """A branch's own is remembered, and is no other's; nor is a run's that began otherwise."""
    recipe = recipe_of(recipe_file)
    own = f"{recipe.run_directory}: "
    assert f"{parent} is another run, which did not begin there" in refusal(load_recipe(recipe_file), f"{parent}@{AT}")
    branch = begun(recipe, parent)
    assert find_resume(recipe, "auto", branch) == [branch.checkpoint]
    Path(recipe.run_directory).mkdir()
    keep_branch(Path(recipe.run_directory), branch)
    assert find_branch(recipe, None) == find_branch(recipe, f"{parent}@{AT}") == branch == read_branch(Path(own[:-2]))
    said = refusal(recipe, f"{parent}@4")
    assert f"{recipe.run_directory} is a branch of {parent}@8 already; leave --branch out" in said
    assert f"--set run_directory={recipe.run_directory}-2" in said
    with pytest.raises(ConfigError, match=r"begins as a branch of .*; leave --resume out"):
        find_resume(recipe, str(branch.checkpoint), branch)
    shutil.rmtree(branch.checkpoint)
    with pytest.raises(CheckpointError, match="gone, and the branch that begins there has no checkpoint of its own"):
        find_resume(recipe, "auto", find_branch(recipe, None))


def with_sources(recipe_file: Path, *paths: Path, weight: float = 1.0) -> None:
    """Let a recipe name these shard sets."""
    head, _, tail = recipe_file.read_text(encoding="utf-8").partition("[[data.sources]]")
    tables = "".join(f'[[data.sources]]\npath = "{path}"\nweight = {weight}\n' for path in paths)
    recipe_file.write_text(f"{head}{tables}[schedule]{tail.partition('[schedule]')[2]}", encoding="utf-8")


def test_where_it_reads_on(
    recipe_file: Path, parent: Path, shards: Path, other_shards: Path, tokenizer: Tokenizer
) -> None:
    """With the parent's blend as the parent would; with another from its first row on, each source where it stands."""
    recipe = recipe_of(recipe_file, "data.changes=[{at_tokens=4096, weights=[1]}]")  # nothing that the parent has done
    blend = open_blend(recipe.data, tokenizer, 0, rows_per_step=8)
    branch = begun(recipe, parent)
    assert state_in_branch(recipe, branch, blend) == branch.state
    with_sources(recipe_file, shards, other_shards)
    for change, address in (([], (0, 0, 64)), ([CHANGE], (1, 0, 0)), ([EARLIER], (1, 0, 0))):
        recipe = recipe_of(recipe_file, *change)
        blend = open_blend(recipe.data, tokenizer, 0, rows_per_step=8)
        state = state_in_branch(recipe, branch, blend)
        assert (state.first_row, state.first_rows, state.source_rows) == (ROWS, [ROWS, 0], [ROWS, 0])
        assert blend.go_on(state.rows, state.source_rows, state.first_rows, state.first_row)
        assert blend.address(ROWS) == address
        check_epochs(blend, recipe.data, 128)  # a source that the parent has read need not be read again
    assert blend.consumed(ROWS + 20) == [ROWS, 20]
    assert blend.epochs(128)[0] == pytest.approx(ROWS / blend.sources[0].num_rows)


def test_the_parents_shards_stay_in_their_places(
    recipe_file: Path, parent: Path, shards: Path, other_shards: Path, tokenizer: Tokenizer
) -> None:
    for paths in ([other_shards], [other_shards, shards]):
        with_sources(recipe_file, *paths)
        recipe = recipe_of(recipe_file)
        blend = open_blend(recipe.data, tokenizer, 0)
        with pytest.raises(ConfigError) as refused:
            state_in_branch(recipe, begun(recipe, parent), blend)
        said = f"data.sources[0]: not the shards that {parent}@8 read as its own, {shards}; list what it read first"
        assert str(refused.value).startswith(said)


def test_a_decayed_run_says_where_to_branch(recipe_file: Path) -> None:
    level = [f"mask.{key}_rate=0.2" for key in ("start", "peak", "end")]
    decaying = ["schedule.kind=warmup_stable_decay", "schedule.decay_tokens=2048", *level]
    recipe = load_recipe(recipe_file, decaying)
    run = leave_run(recipe, 8)
    later = run / "checkpoints/step_000000016"
    shutil.copytree(run / "checkpoints/step_000000008", later)
    state = json.loads((later / "state.json").read_text(encoding="utf-8")) | {"step": 16, "rows": 128, "tokens": 8192}
    (later / "state.json").write_text(json.dumps(state), encoding="utf-8")
    words = f"--set run_directory={run}-2 --branch {run}@8"
    done = {later: 16, run / "checkpoints/step_000000008": 8}
    assert f"a larger train.total_tokens, {words}; to train further from its weights" in how_to_train_further(
        recipe, done
    )
    with pytest.raises(ConfigError) as refused:
        check_belongs(load_recipe(recipe_file, [*decaying, "train.total_tokens=16384"]))
    assert f"; to branch there and keep this run, with {words}; " in str(refused.value)
    more = load_recipe(recipe_file, [*decaying, "train.total_tokens=16384", f"run_directory={run}-2"])
    begin(more, f"{run}@8")
