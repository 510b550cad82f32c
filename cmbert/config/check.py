"""What a recipe must satisfy beyond types and ranges: one rule a line, each naming its key and the remedy."""

from cmbert.config.ranges import check_ranges
from cmbert.config.schema import ModelConfig, OptimizerConfig, Recipe
from cmbert.errors import ConfigError
from cmbert.files.names import fault_of_name


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for the first number outside its range, or else the first rule that `recipe` breaks."""
    check_ranges(recipe)
    _check(
        *_name_rules(recipe),
        *_model_rules(recipe.model),
        *_data_rules(recipe),
        *_schedule_rules(recipe),
        *_training_rules(recipe),
        *_kernel_rules(recipe),
    )


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError for the first number of a model outside its range, or else the first rule that it breaks."""
    check_ranges(model, "model")
    _check(*_model_rules(model))


def _check(*rules: tuple[bool, str, str]) -> None:
    for broken, key, remedy in rules:
        if broken:
            raise ConfigError(f"{key}: {remedy}")


def _name_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    """An empty path would be the working directory."""
    needed = {
        "run_directory": recipe.run_directory,
        "data.tokenizer": recipe.data.tokenizer,
        "train.deepspeed": recipe.train.deepspeed,
        **{f"data.sources[{number}].path": source.path for number, source in enumerate(recipe.data.sources)},
        **{f"evaluation.other_shards[{n}]": path for n, path in enumerate(recipe.evaluation.other_shards)},
    }
    names = needed | {"train.init_from": recipe.train.init_from, "evaluation.shards": recipe.evaluation.shards}
    return [
        *((not name.strip(), key, "is empty; name what it stands for") for key, name in needed.items()),
        *((bool(fault := fault_of_name(name or "")), key, fault) for key, name in names.items()),
    ]


def _model_rules(model: ModelConfig) -> list[tuple[bool, str, str]]:
    below, above = model.vocab_size // 64 * 64, -(-model.vocab_size // 64) * 64
    return [
        (
            model.vocab_size % 64 != 0,
            "model.vocab_size",
            f"{model.vocab_size} is not a multiple of 64 (kernel tiling); nearest: {max(below, 64)} or {above}",
        ),
        (
            model.hidden_size % (2 * model.num_heads) != 0,
            "model.num_heads",
            f"hidden_size {model.hidden_size} must be an even multiple of {model.num_heads} heads (RoPE turns pairs)",
        ),
        (model.local_window % 2 != 0, "model.local_window", "must be even"),
    ]


def _data_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    data, mask = recipe.data, recipe.mask
    return [
        (not data.sources, "data.sources", "name at least one shard set in a [[data.sources]] table"),
        (
            len({s.weight > 0 for s in data.sources}) > 1,
            "data.sources",
            "give every source a weight or none (0 = in proportion to its rows)",
        ),
        (
            any(len(c.weights) != len(data.sources) or not any(c.weights) for c in data.changes),
            "data.changes",
            "give one weight for each of data.sources, not all zero",
        ),
        (
            [c.at_tokens for c in data.changes] != sorted({c.at_tokens for c in data.changes}),
            "data.changes",
            "at_tokens must rise",
        ),
        (
            data.context_tokens > recipe.model.max_length,
            "data.context_tokens",
            f"{data.context_tokens} exceeds model.max_length {recipe.model.max_length}, which RoPE is planned for; "
            f"nearest that works: {recipe.model.max_length}, or raise model.max_length (and rope_base_global)",
        ),
        (
            bool(recipe.evaluation.other_shards) and not recipe.evaluation.shards,
            "evaluation.other_shards",
            "needs evaluation.shards, the first set; name it, or leave these out",
        ),
        (mask.mask_prob + mask.random_prob > 1, "mask.mask_prob", "mask_prob + random_prob must be at most 1"),
        (
            mask.warmup_tokens >= recipe.train.total_tokens,
            "mask.warmup_tokens",
            "must lie below train.total_tokens",
        ),
    ]


def _schedule_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    schedule, train = recipe.schedule, recipe.train
    lowest_gamma = schedule.lr_min / schedule.lr_max
    return [
        (schedule.lr_min > schedule.lr_max, "schedule.lr_min", "must lie between 0 and lr_max"),
        (
            schedule.kind != "damped_cosine" and (schedule.num_cycles, schedule.gamma) != (1, 0.0),
            "schedule.kind",
            f"num_cycles and gamma belong to damped_cosine, not to {schedule.kind}; leave them out",
        ),
        (
            schedule.kind == "warmup_stable_decay"
            and not 0 < schedule.decay_tokens <= train.total_tokens - schedule.warmup_tokens,
            "schedule.decay_tokens",
            "must be positive and fit between the warm-up and train.total_tokens",
        ),
        (
            schedule.kind != "warmup_stable_decay" and schedule.decay_tokens != 0,
            "schedule.decay_tokens",
            f"belongs to kind warmup_stable_decay, not to {schedule.kind}; leave it out",
        ),
        (
            schedule.num_cycles >= 2 and schedule.gamma < lowest_gamma,
            "schedule.gamma",
            f"must be at least lr_min / lr_max = {lowest_gamma:.3g} when num_cycles >= 2: peaks stay above valleys",
        ),
        (
            schedule.warmup_tokens >= train.total_tokens,
            "schedule.warmup_tokens",
            "must lie below train.total_tokens",
        ),
    ]


def _training_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    train, optimizer = recipe.train, recipe.optimizer
    return [
        *_ramp_rules(recipe),
        (
            optimizer.kind != "muon" and optimizer.momentum != OptimizerConfig.momentum,
            "optimizer.momentum",
            f"belongs to kind muon, not to {optimizer.kind}; leave it out",
        ),
        (
            train.init_tiling and not train.init_from,
            "train.init_tiling",
            "needs train.init_from, the smaller model's run",
        ),
        (
            optimizer.weight_decay * recipe.schedule.lr_max >= 1,
            "optimizer.weight_decay",
            f"{optimizer.weight_decay:g} x schedule.lr_max {recipe.schedule.lr_max:g} must be below 1: a step takes so "
            "much of every weight",
        ),
    ]


def _ramp_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    train = recipe.train
    start, increment = train.ramp_start_rows, train.ramp_increment_rows
    ramped = bool(start or increment or train.ramp_tokens)
    return [
        (
            ramped and min(start, increment, train.ramp_tokens) < 1,
            "train.ramp_start_rows",
            "ramp_start_rows, ramp_increment_rows and ramp_tokens go together: set all three, positive, or none",
        ),
        (
            ramped and (start >= train.rows_per_step or (train.rows_per_step - start) % max(increment, 1) != 0),
            "train.ramp_increment_rows",
            f"must lead from ramp_start_rows {start} to rows_per_step {train.rows_per_step} in equal increments",
        ),
        (
            ramped and train.ramp_tokens >= train.total_tokens,
            "train.ramp_tokens",
            "must lie below train.total_tokens",
        ),
    ]


def _kernel_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    kernels = recipe.kernels
    return [
        (
            kernels.norm == "apex" and recipe.model.norm != "rmsnorm",
            "kernels.norm",
            "apex computes RMSNorm; with model.norm layernorm use torch",
        ),
        (
            kernels.norm == "apex" and kernels.compile,
            "kernels.norm",
            "apex cannot be compiled; use torch, whose norm is fused by kernels.compile",
        ),
    ]
