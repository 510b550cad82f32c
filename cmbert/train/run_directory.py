"""The run directory: what it records about the run, to whom it belongs, and where a resume starts."""

import importlib.metadata
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from cmbert.config.load import differing_keys, load_recipe, write_resolved
from cmbert.config.schema import Recipe
from cmbert.data.loader import RowReader
from cmbert.errors import CheckpointError, ConfigError
from cmbert.files import write_json
from cmbert.tokenizer import Tokenizer
from cmbert.train.checkpoint import (
    CHECKPOINTS,
    TrainState,
    check_files,
    find_checkpoint,
    read_state,
    require_checkpoint,
)

RECIPE_FILE = "resolved.toml"
# Keys that may change within a run: they alter speed, memory or bookkeeping, not what is learnt.
FREE_KEYS = (
    "train.micro_batch_rows",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.wandb_project",
    "data.num_workers",
    "evaluation.shards",
    "evaluation.every_steps",
    "evaluation.max_rows",
    "kernels.attention",
    "kernels.norm",
    "kernels.compile",
    "kernels.checkpointed_share",
)
RECORDED_PACKAGES = ("cmbert", "torch", "deepspeed", "numpy", "tokenizers", "flash-attn", "apex")


def open_run_directory(recipe: Recipe, deepspeed_config: dict[str, Any], rank: int) -> Path:
    """Create the run directory on rank 0 and write the recipe, DeepSpeed config and environment in force."""
    directory = Path(recipe.run_directory)
    if rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_resolved(recipe, directory / RECIPE_FILE)
        write_json(directory / "ds_config.json", deepspeed_config)
        write_json(directory / "environment.json", describe_environment())
    return directory


def describe_environment() -> dict[str, Any]:
    """Return git commit, package versions, host and command line of this process."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "git_commit": git.stdout.strip() or None,
        "versions": {name: installed.get(name) for name in RECORDED_PACKAGES},
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
    """Return the run directory that a checkpoint lies in. Raises CheckpointError when it was moved out of one."""
    if checkpoint.parent.name != CHECKPOINTS or not (checkpoint.parent.parent / RECIPE_FILE).is_file():
        raise CheckpointError(
            f"{checkpoint}: not inside a run directory; keep checkpoints where `cmbert train` made them"
        )
    return checkpoint.parent.parent


def check_belongs(recipe: Recipe) -> None:
    """Raise ConfigError when the run directory was made with a recipe that differs in what is learnt."""
    directory = Path(recipe.run_directory)
    if not (directory / RECIPE_FILE).is_file():
        return
    differing = [key for key in differing_keys(read_run_recipe(directory), recipe) if key not in FREE_KEYS]
    if differing:
        raise ConfigError(
            f"{directory}: belongs to another recipe (differs in {', '.join(differing)}); set another run_directory, "
            "or move this one away"
        )


def find_resume(
    recipe: Recipe, resume: str, tokenizer: Tokenizer, reader: RowReader, world_size: int
) -> tuple[Path | None, TrainState | None]:
    """Return the checkpoint to continue from and its state, or (None, None) for a fresh start.

    Raises ConfigError or CheckpointError when the run directory belongs to another recipe, the checkpoint is torn, or
    it was made with other data, tokenizer or number of ranks.
    """
    directory = Path(recipe.run_directory)
    check_belongs(recipe)
    existing = find_checkpoint(directory)
    if resume == "never" and existing:
        raise CheckpointError(f"{directory}: holds {existing.name}, and --resume never was given; move the run away")
    checkpoint = existing if resume in ("auto", "never") else require_checkpoint(Path(resume))
    if checkpoint is None:
        return None, None
    check_files(checkpoint)
    state = read_state(checkpoint)
    found = {
        "tokenizer": (state.tokenizer_fingerprint, tokenizer.fingerprint),
        "shards": (state.shard_fingerprints, [source.shards.fingerprint for source in reader.blend.sources]),
        "number of ranks": (state.world_size, world_size),
    }
    for name, (saved, current) in found.items():
        if saved != current:
            raise CheckpointError(
                f"{checkpoint}: made with other {name} ({saved}, now {current}); resume with what it was made with"
            )
    return checkpoint, state
