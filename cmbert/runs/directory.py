"""The run directory: what it records about the run, to whom it belongs, and where a resume starts."""

import logging
import os
import platform
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbert.checkpoint.files import CHECKPOINTS, has_weights_alone, require_resumable, resume_candidates
from cmbert.checkpoint.state import TrainState, readable_states
from cmbert.config.load import differing_keys, load_recipe, write_resolved
from cmbert.config.schema import Recipe
from cmbert.environment import git_commit, installed_versions, number_in
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files.operations import file_size, patiently
from cmbert.files.whole import write_json
from cmbert.runs.going_on import changes_between, goes_on_in_place, way_on
from cmbert.tokenizer import Tokenizer

if TYPE_CHECKING:  # torch and numba
    from cmbert.data.reader import RowReader
    from cmbert.runs.branch import Branch

logger = logging.getLogger(__name__)

RECIPE_FILE = "resolved.toml"
PLAN_FOLDER = "plan"  # rows of each shard set, proofs of Megatron pairs: a resume need not read documents for them
# Keys that may change within a run: they alter speed, memory or bookkeeping, not what is learnt.
FREE_KEYS = (
    "train.micro_batch_rows",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.keep_every_tokens",
    "train.ephemeral_every_steps",
    "train.max_failed_saves",
    "train.log_every_steps",
    "train.wandb_project",
    "data.num_workers",
    "evaluation.shards",
    "evaluation.other_shards",
    "evaluation.every_steps",
    "evaluation.max_rows",
    "guards.max_skipped_steps",
    "guards.spike_action",
    "guards.spike_score",
    "guards.spike_window_steps",
    "guards.rewind_steps",
    "guards.max_rewinds",
    "guards.hang_seconds",
    "kernels.attention",
    "kernels.norm",
    "kernels.compile",
    "kernels.deterministic",
    "kernels.activation_checkpoint_fraction",
)
RECORDED_PACKAGES = ("cmbert", "torch", "deepspeed", "numpy", "tokenizers", "flash-attn", "apex")


def open_run_directory(recipe: Recipe, deepspeed_config: dict[str, Any], reader: "RowReader") -> None:
    """Write the recipe, DeepSpeed config, environment and plan of rows in force. Only who has the lease."""
    directory = Path(recipe.run_directory)
    if (directory / RECIPE_FILE).is_file():
        before = read_run_recipe(directory)
        changed = [key for key in differing_keys(before, recipe) if key not in FREE_KEYS]
        for change in changes_between(before, recipe, changed):
            logger.info("%s: goes on with another recipe: %s", directory, change)
    write_resolved(recipe, directory / RECIPE_FILE)
    write_json(directory / "ds_config.json", deepspeed_config)
    write_json(directory / "environment.json", describe_environment())
    for source in reader.blend.sources:
        source.keep_plan()
        source.shards.keep_proof(directory / PLAN_FOLDER)


def describe_environment() -> dict[str, Any]:
    """Return git commit, package versions, host and command line of this process."""
    return {
        "git_commit": git_commit(),
        "versions": installed_versions(RECORDED_PACKAGES),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "command": sys.argv,
    }


def read_run_recipe(run: Path) -> Recipe:
    """Return the recipe a run directory was made with. Raises CheckpointError when it is not a run directory."""
    if not (run / RECIPE_FILE).is_file():
        raise CheckpointError(f"{run}: not a run directory (no {RECIPE_FILE}); name one that `cmbert train` made")
    return load_recipe(run / RECIPE_FILE)


def run_of(checkpoint: Path) -> Path:
    """Return the run directory that a checkpoint lies in, or itself if it has its recipe with it (merged.py).

    Raises CheckpointError when it was moved out of one.
    """
    if (checkpoint / RECIPE_FILE).is_file():
        return checkpoint
    if checkpoint.parent.name != CHECKPOINTS or not (checkpoint.parent.parent / RECIPE_FILE).is_file():
        raise CheckpointError(
            f"{checkpoint}: not inside a run directory; keep checkpoints where `cmbert train` made them"
        )
    return checkpoint.parent.parent


def check_belongs(recipe: Recipe, candidates: Sequence[Path] | None = None) -> None:
    """Raise ConfigError when the run directory was made with a recipe that differs in what is learnt.

    What differs only after the first of `candidates` (default: the run's checkpoints) may: see going_on.py.
    """
    directory = Path(recipe.run_directory)
    if patiently(partial(file_size, directory / RECIPE_FILE)) is None:
        return
    theirs = read_run_recipe(directory)
    differing = [key for key in differing_keys(theirs, recipe) if key not in FREE_KEYS]
    if not differing:
        return
    states = readable_states(resume_candidates(directory) if candidates is None else candidates)
    done = {path: state.step for path, state in states.items()}
    steps = next(iter(done.values()), 0)
    if not steps or not goes_on_in_place(differing, theirs, recipe, steps):
        changes = changes_between(theirs, recipe, differing)
        raise ConfigError(
            f"{directory}: belongs to another recipe: {'; '.join(changes)}; {way_on(differing, theirs, recipe, done)}"
        )


def find_resume(recipe: Recipe, resume: str, branch: "Branch | None" = None) -> list[Path]:
    """Return the checkpoints to continue from, best first; empty for a fresh start. Nobody has proved their files yet.

    resume: "auto", "never" or a path, which allows no other; "auto" for lives of a Slurm job after one that has left
    a checkpoint, which did what was asked. branch: where the run begins, if it is one. Raises ConfigError or
    CheckpointError when the run directory belongs to another recipe, or holds checkpoints and must not.
    """
    directory = Path(recipe.run_directory)
    if has_weights_alone(directory):
        raise CheckpointError(f"{directory}: holds weights alone, no run; name another folder in run_directory")
    found = resume_candidates(directory)
    if resume != "auto" and _is_of_an_earlier_life(found):
        resume = "auto"
    is_path = resume not in ("auto", "never")
    if branch and is_path and not found:
        raise ConfigError(f"--resume {resume}: {directory} begins as a branch of {branch}; leave --resume out")
    candidates = [require_resumable(Path(resume))] if is_path else found
    check_belongs(recipe, candidates)
    if resume == "never" and found:
        raise CheckpointError(f"{directory}: holds {found[0].name}, and --resume never was given; move the run away")
    return candidates or ([branch.beginning()] if branch else [])


def _is_of_an_earlier_life(found: list[Path]) -> bool:
    """Return whether an earlier life of this Slurm job has written the newest of these checkpoints."""
    if number_in(os.environ, "SLURM_RESTART_COUNT") == 0:
        return False
    return any(state.job == os.environ.get("SLURM_JOB_ID") for state in readable_states(found[:1]).values())


def check_fits(checkpoint: Path, state: TrainState, tokenizer: Tokenizer, reader: "RowReader") -> None:
    """Raise CheckpointError when `checkpoint` was made with another tokenizer or other data.

    A Megatron pair whose tokens are not proved yet passes, and a set whose fingerprint the state does not say.
    """
    saved, shards = state.shard_fingerprints, [source.shards.fingerprint for source in reader.blend.sources]
    if len(saved) == len(shards):
        shards = [now or before for now, before in zip(shards, saved, strict=True)]
        saved = [before or now for now, before in zip(shards, saved, strict=True)]
    found = {"tokenizer": (state.tokenizer_fingerprint, tokenizer.fingerprint), "shards": (saved, shards)}
    for name, (then, now) in found.items():
        if then != now:
            raise CheckpointError(
                f"{checkpoint}: made with other {name} ({then}, now {now}); resume with what it was made with"
            )
    if not (state.source_rows or len(reader.blend.sources) == 1):
        raise CheckpointError(
            f"{checkpoint}: of a version that mixed several data.sources in another order; end the run with that "
            "version, or start a new one from these weights by train.init_from"
        )
    if not reader.blend.go_on(state.rows, state.source_rows, state.first_rows, state.first_row):
        raise CheckpointError(
            f"{checkpoint}: its data.sources stand at rows {state.source_rows}, which this recipe's blend cannot have "
            f"made of {state.rows:,} rows; resume with the data and the version it was made with"
        )
