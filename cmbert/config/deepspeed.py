"""A DeepSpeed JSON file + a recipe -> one checked dict. ZeRO and precision are set there, the batch here."""

import difflib
import reprlib
from pathlib import Path
from typing import Any

from cmbert.config.batch import taken_micro_batch
from cmbert.config.deepspeed_sections import SECTIONS, section_fault
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.files.json_types import shown_key
from cmbert.files.operations import read_input
from cmbert.files.reading import parse_json
from cmbert.files.shipped import shipped_files

RECIPE_KEYS = {
    "train_batch_size": "train.rows_per_step",
    "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
    "gradient_accumulation_steps": "train.rows_per_step",
    "gradient_clipping": "optimizer.gradient_clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "steps_per_print": "train.log_every_steps",
}
# Keys that DeepSpeed knows and this trainer cannot follow.
REFUSED_KEYS = {
    "fp16": "fp16 needs a loss scale and is not tested here; use bf16",
    "torch_autocast": "precision is bf16 or fp32 throughout; use bf16",
    "amp": "precision is bf16 or fp32 throughout; use bf16",
    "checkpoint": "checkpoints have one form here (docs/resume.md); remove it",
    "nebula": "checkpoints have one form here (docs/resume.md); remove it",
    "use_node_local_storage": "checkpoints lie in the run directory, which all nodes must see; remove it",
    "sparse_gradients": "the tied embedding has dense gradients; remove it",
    "zero_allow_untested_optimizer": "always set by this trainer; remove it",
    "zero_force_ds_cpu_optimizer": "always set by this trainer; remove it",
}
# Offload moves the states to the CPU or to a disk; Muon sends matrices from GPU to GPU.
OFFLOAD_TABLES = ("offload_optimizer", "offload_param")  # off where their device is none, as it is by default
OFFLOAD_FLAGS = ("cpu_offload", "cpu_offload_param")  # DeepSpeed's old names
SHIPPED = ("ds_configs", ".json")


def deepspeed_path(name: str | Path) -> Path:
    """Return the file that train.deepspeed stands for: a shipped one by its name ("zero1"), any other by its path.

    Raises ConfigError for a name that no shipped file has.
    """
    path = Path(name)
    if len(path.parts) > 1 or path.suffix:
        return path
    shipped = shipped_files(*SHIPPED)
    if path.name not in shipped:
        raise ConfigError(
            f"train.deepspeed: no shipped DeepSpeed file is called {str(name)!r}; there are {', '.join(shipped)}, or "
            "give the path of your own (it ends in .json)"
        )
    return shipped[path.name]


def same_deepspeed(first: str, second: str) -> bool:
    """Return whether two values of train.deepspeed stand for the same file, or for files with the same bytes."""
    if first == second:
        return True
    one, other = (read_input(deepspeed_path(name)) for name in (first, second))
    return one is not None and one == other


def load_deepspeed_file(name: str | Path) -> dict[str, Any]:
    """Read and check what train.deepspeed names. Raises ConfigError for unknown keys and for what the recipe owns."""
    path = deepspeed_path(name)
    raw = read_input(path)
    if raw is None:
        raise ConfigError(
            f"{path}: no such DeepSpeed file; train.deepspeed names it; the shipped ones go by name, from any folder: "
            f"{', '.join(shipped_files(*SHIPPED))}"
        )
    try:
        table = parse_json(raw)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: must be a JSON object")
    for key in table:
        if key in RECIPE_KEYS:
            raise ConfigError(f"{path}: {key}: the recipe owns this number; remove it here and set {RECIPE_KEYS[key]}")
        if key in REFUSED_KEYS:
            raise ConfigError(f"{path}: {key}: {REFUSED_KEYS[key]}")
        if key not in SECTIONS:  # DeepSpeed ignores it: a typing mistake would silently train something else
            near = difflib.get_close_matches(key, SECTIONS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "see ds_configs/README.md"
            raise ConfigError(f"{path}: {shown_key(key)}: unknown top-level key (DeepSpeed would ignore it); {remedy}")
    zero_stage(table, path)
    if fault := section_fault(table, SECTIONS):
        raise ConfigError(f"{path}: {fault}")
    own = "bf16" if activation_dtype(table) == "bfloat16" else "fp32"
    accumulated = table.get("data_types", {}).get("grad_accum_dtype")
    if accumulated not in (None, own, "fp32"):
        raise ConfigError(
            f"{path}: data_types.grad_accum_dtype: {accumulated!r} is neither fp32 nor what the gradients are ({own})"
        )
    return table


def zero_stage(table: dict[str, Any], path: Path) -> int:
    """Return the ZeRO stage of a DeepSpeed table. Raises ConfigError unless it is 1, 2 or 3.

    Stage 0 has another checkpoint layout; on one rank stage 1 partitions nothing and does the same.
    """
    section = table.get("zero_optimization", {})
    stage = section.get("stage") if isinstance(section, dict) else section
    if type(stage) is not int or stage not in (1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage: {reprlib.repr(stage)} is not 1, 2 or 3; on one GPU use 1")
    return stage


def resolve_deepspeed(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """Return the dict for `deepspeed.initialize`. Raises ConfigError when the batch does not divide over the ranks."""
    train = recipe.train
    micro_batch_rows = taken_micro_batch(train, world_size)
    table = load_deepspeed_file(train.deepspeed)
    if recipe.kernels.compile and table["zero_optimization"]["stage"] == 3:
        raise ConfigError(
            f"kernels.compile: torch.compile cannot follow ZeRO 3, which gathers weights as it goes; set it to false, "
            f"or choose ZeRO 1 or 2 instead of {train.deepspeed}"
        )
    if recipe.optimizer.kind == "muon" and (key := _offload_key(table["zero_optimization"])):
        raise ConfigError(
            f"{deepspeed_path(train.deepspeed)}: zero_optimization.{key}: optimizer.kind muon cannot work on what is "
            "offloaded; choose another train.deepspeed (zero1, zero2, zero3), or set optimizer.kind to stable_adamw"
        )
    return {
        **table,
        **_without_waiting(table),
        "train_batch_size": train.rows_per_step,
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": train.rows_per_step // (micro_batch_rows * world_size),
        "gradient_clipping": 0.0,  # the optimizer clips: DeepSpeed would wait for the norm
        "steps_per_print": 2**31 - 1,  # the loop prints its own lines
        "zero_allow_untested_optimizer": True,  # tests compare it with an undivided one at every stage
        "zero_force_ds_cpu_optimizer": False,  # offload, too, uses ours
    }


def _offload_key(section: dict[str, Any]) -> str | None:
    """Return the key of the ZeRO section that offloads anything, or None."""
    for key in OFFLOAD_TABLES:
        if section.get(key, {}).get("device", "none") != "none":
            return key
    return next((key for key in OFFLOAD_FLAGS if section.get(key)), "zenflow" if "zenflow" in section else None)


def _without_waiting(table: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of `table` with what makes DeepSpeed wait for the device switched off, unless it says so.

    Its throughput timer waits twice in every micro-batch, its search for gradients that are not finite once in a step;
    the trainer measures, and its guard judges the norm.
    """
    sections: dict[str, Any] = {"timers": {"throughput": {"enabled": False}, **table.get("timers", {})}}
    if "bf16" in table:
        sections["bf16"] = {"check_grad_overflow": False, **table["bf16"]}
    return sections


def activation_dtype(deepspeed: dict[str, Any]) -> str:
    """Return the name of the dtype that weights and activations have under a DeepSpeed table."""
    return "bfloat16" if deepspeed.get("bf16", {}).get("enabled") else "float32"


def activation_bytes(deepspeed: dict[str, Any]) -> int:
    """Return the bytes of one value of that dtype."""
    return 4 if activation_dtype(deepspeed) == "float32" else 2
