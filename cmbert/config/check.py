"""What a recipe must satisfy beyond types: one rule a line, each naming its key and the remedy."""

from cmbert.config.schema import LEAST_HISTORY, Recipe
from cmbert.errors import ConfigError


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for the first rule that `recipe` breaks."""
    for broken, key, remedy in (
        *_model_rules(recipe),
        *_data_rules(recipe),
        *_schedule_rules(recipe),
        *_training_rules(recipe),
        *_kernel_rules(recipe),
        *_guard_rules(recipe),
    ):
        if broken:
            raise ConfigError(f"{key}: {remedy}")


def _model_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    model = recipe.model
    below, above = model.vocab_size // 64 * 64, -(-model.vocab_size // 64) * 64
    return [
        (
            min(model.num_layers, model.hidden_size, model.num_heads, model.intermediate_size) < 1,
            "model",
            "sizes must be positive",
        ),
        (
            model.vocab_size < 64 or model.vocab_size % 64 != 0,
            "model.vocab_size",
            f"{model.vocab_size} is not a multiple of 64 (kernel tiling); nearest: {max(below, 64)} or {above}",
        ),
        (
            model.hidden_size % max(2 * model.num_heads, 1) != 0,
            "model.num_heads",
            f"hidden_size {model.hidden_size} must be an even multiple of {model.num_heads} heads (RoPE turns pairs)",
        ),
        (model.global_every < 1, "model.global_every", "must be at least 1 (1 = every layer is global)"),
        (model.local_window < 2 or model.local_window % 2 != 0, "model.local_window", "must be even and at least 2"),
        (min(model.rope_base_global, model.rope_base_local) <= 1, "model.rope_base_global", "RoPE bases must exceed 1"),
    ]


def _data_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    data, mask = recipe.data, recipe.mask
    rates = (mask.start_rate, mask.peak_rate, mask.end_rate)
    return [
        (not data.sources, "data.sources", "name at least one shard set in a [[data.sources]] table"),
        (any(s.weight < 0 for s in data.sources), "data.sources", "weights must not be negative"),
        (
            len({s.weight > 0 for s in data.sources}) > 1,
            "data.sources",
            "give every source a weight or none (0 = in proportion to its tokens)",
        ),
        (
            any(len(c.weights) != len(data.sources) or min(c.weights) < 0 or not any(c.weights) for c in data.changes),
            "data.changes",
            "give one weight for each of data.sources, none negative, not all zero",
        ),
        (
            [c.at_tokens for c in data.changes] != sorted({c.at_tokens for c in data.changes if c.at_tokens > 0}),
            "data.changes",
            "at_tokens must be positive and rise",
        ),
        (data.context_tokens < 8, "data.context_tokens", "must be at least 8"),
        (
            data.context_tokens > recipe.model.max_length,
            "data.context_tokens",
            f"{data.context_tokens} exceeds model.max_length {recipe.model.max_length}, which RoPE is planned for; "
            f"nearest that works: {recipe.model.max_length}, or raise model.max_length (and rope_base_global)",
        ),
        (
            min(data.window_rows, data.group_windows) < 1,
            "data.window_rows",
            "window_rows and group_windows must be positive",
        ),
        (data.num_workers < 0, "data.num_workers", "must not be negative"),
        (not all(0 < rate < 1 for rate in rates), "mask", "rates must lie between 0 and 1"),
        (
            min(mask.mask_share, mask.random_share) < 0 or mask.mask_share + mask.random_share > 1,
            "mask.mask_share",
            "mask_share + random_share must lie between 0 and 1",
        ),
        (
            not 0 <= mask.warmup_tokens < recipe.train.total_tokens,
            "mask.warmup_tokens",
            "must lie below train.total_tokens",
        ),
    ]


def _schedule_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    schedule, train = recipe.schedule, recipe.train
    lowest_gamma = schedule.lr_min / schedule.lr_max if schedule.lr_max > 0 else 0.0
    return [
        (not 0 <= schedule.lr_min <= schedule.lr_max, "schedule.lr_min", "must lie between 0 and lr_max"),
        (schedule.lr_max <= 0, "schedule.lr_max", "must be positive"),
        (schedule.num_swings < 1, "schedule.num_swings", "must be at least 1"),
        (
            schedule.kind != "damped_cosine" and (schedule.num_swings, schedule.gamma) != (1, 0.0),
            "schedule.kind",
            f"num_swings and gamma belong to damped_cosine, not to {schedule.kind}; leave them out",
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
        (not 0 <= schedule.gamma <= 1, "schedule.gamma", "must lie between 0 and 1"),
        (
            schedule.num_swings >= 2 and schedule.gamma < lowest_gamma,
            "schedule.gamma",
            f"must be at least lr_min / lr_max = {lowest_gamma:.3g} when num_swings >= 2: peaks stay above valleys",
        ),
        (
            not 0 <= schedule.warmup_tokens < train.total_tokens,
            "schedule.warmup_tokens",
            "must lie below train.total_tokens",
        ),
    ]


def _training_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    train, optimizer = recipe.train, recipe.optimizer
    return [
        (min(train.total_tokens, train.rows_per_step, train.micro_batch_rows) < 1, "train", "sizes must be positive"),
        *_ramp_rules(recipe),
        (train.seed < 0, "train.seed", "must not be negative"),
        (
            train.init_tiling and not train.init_from,
            "train.init_tiling",
            "needs train.init_from, the smaller model's run",
        ),
        (
            min(train.checkpoint_every_steps, train.keep_checkpoints, train.log_every_steps) < 1,
            "train",
            "intervals must be positive",
        ),
        (
            min(train.keep_every_tokens, train.rolling_every_steps, train.max_failed_saves) < 0,
            "train.rolling_every_steps",
            "keep_every_tokens, rolling_every_steps and max_failed_saves must not be negative",
        ),
        (
            min(recipe.evaluation.every_steps, recipe.evaluation.max_rows) < 1,
            "evaluation.every_steps",
            "every_steps and max_rows must be positive",
        ),
        (not 0 <= optimizer.beta1 < 1 or not 0 <= optimizer.beta2 < 1, "optimizer.beta1", "betas must lie in [0, 1)"),
        (
            min(optimizer.eps, optimizer.weight_decay, optimizer.gradient_clip) < 0,
            "optimizer",
            "values must not be negative",
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
            not 0 <= kernels.checkpointed_share <= 1,
            "kernels.checkpointed_share",
            "must lie between 0 (keep all activations) and 1 (compute every layer again)",
        ),
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


def _guard_rules(recipe: Recipe) -> list[tuple[bool, str, str]]:
    guards = recipe.guards
    return [
        (
            min(guards.max_skipped_steps, guards.max_rewinds, guards.hang_seconds) < 0,
            "guards",
            "max_skipped_steps, max_rewinds and hang_seconds must not be negative",
        ),
        (guards.spike_score <= 0, "guards.spike_score", "must be positive"),
        (guards.rewind_steps < 1, "guards.rewind_steps", "must be at least 1: the spike's own batch is left out"),
        (
            guards.spike_window_steps < LEAST_HISTORY,
            "guards.spike_window_steps",
            f"must be at least {LEAST_HISTORY}: fewer steps say nothing about a spike",
        ),
    ]
