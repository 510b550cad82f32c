"""What a recipe costs, before it runs: parameters, compute, memory, steps, disk, time; and what cannot work.

Arithmetic only: torch is imported just where a shard set or a first stage that exists is looked at.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from cmbert.config.deepspeed import activation_dtype, resolve_deepspeed
from cmbert.config.parameters import Parameters, count_parameters
from cmbert.config.schema import MaskConfig, Recipe
from cmbert.data.shards import MANIFEST_FILE, SHARD_SUFFIXES, ShardSet, token_dtype
from cmbert.errors import ConfigError
from cmbert.hardware import H100_FLOPS
from cmbert.model.cost import FlopsPerToken, count_flops, estimate_activations
from cmbert.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from cmbert.train.schedule import batch_ramp, learning_rate, mask_rate, num_steps, rows_before, tokens_before

ASSUMED_MFU = 0.33  # what ModernBERT-large's published hours on 8 H100 at 1,024 come to
OPTIMIZER_BYTES = 12  # per parameter: fp32 copy and Adam's two moments, 4 each
MEMORY_COLUMNS = (12, 11, 11, 14, 10)  # characters
BAR_WIDTH = 16  # characters of the drawn schedule's highest value
COMPUTE_REMARKS = {
    "forward": "   the encoder: the three above",
    "head": "   at masked positions only, mean mask rate",
    "training": "   3 x (forward + head)",
}


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU at one ZeRO stage."""

    zero_stage: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_estimate_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Source:
    """One shard set; None = not known, because something is not there yet."""

    path: str
    tokens: int | None = None
    rows: int | None = None
    epochs: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class SchedulePoint:
    """Learning rate and mask rate at one point of the stage."""

    percent: int
    tokens: int
    learning_rate: float
    mask_rate: float


@dataclass(frozen=True)
class Plan:
    """Everything `cmbert plan` knows about one recipe on `num_gpus` GPUs."""

    run_directory: str
    num_gpus: int
    zero_stage: int
    parameters: Parameters
    flops_per_token: FlopsPerToken
    memory: tuple[Memory, ...]
    context_tokens: int
    total_tokens: int
    step_tokens: int
    num_steps: int
    rows_per_step: int
    micro_batch_rows: int
    accumulation: int
    """Micro-batches of one GPU in a step."""
    batch_ramp: tuple[tuple[int, int, int], ...]
    """First step, tokens seen before it and rows of each size of a step; one entry without a ramp."""
    sources: tuple[Source, ...]
    checkpoint_bytes: int
    checkpoints_bytes: int
    """Of all that are kept, and of the one being written."""
    shards_bytes: float
    """On disk when every set exists, else of the stage's tokens read once, without the .idx files."""
    shards_measured: bool
    training_flops: float
    assumed_peak_flops: float
    assumed_mfu: float
    gpu_hours: float
    """At the assumed rate: not a measurement, and not for CPUs."""
    hours: float
    schedule: tuple[SchedulePoint, ...]
    notes: tuple[str, ...]


def make_plan(recipe: Recipe, num_gpus: int) -> Plan:
    """Work out what `recipe` costs on `num_gpus` GPUs (CPU processes where there is no GPU).

    Raises ConfigError or ShardError when it cannot work: the batch does not divide, the vocabulary is not the
    tokenizer's, a shard set belongs to another tokenizer, is torn, or would be repeated too often.
    """
    _check_batch(recipe, num_gpus)
    deepspeed = resolve_deepspeed(recipe, num_gpus)
    weight_bytes = 4 if activation_dtype(deepspeed) == "float32" else 2
    train, context = recipe.train, recipe.data.context_tokens
    parameters = count_parameters(recipe.model)
    flops = count_flops(recipe.model, context, mean_mask_rate(recipe.mask, train.total_tokens))
    activations = estimate_activations(recipe, weight_bytes)
    sources, notes = _look_at_data(recipe)
    shards_measured = all(source.bytes is not None for source in sources)
    bytes_per_token = token_dtype(recipe.model.vocab_size).itemsize + 1 / 8  # one word bit a token
    zero_stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    saved_bytes = OPTIMIZER_BYTES + (weight_bytes if zero_stage < 3 else 0)  # ZeRO 3 saves the fp32 weights alone
    training_flops = flops.training * tokens_before(num_steps(recipe), recipe)
    return Plan(
        run_directory=recipe.run_directory,
        num_gpus=num_gpus,
        zero_stage=zero_stage,
        parameters=parameters,
        flops_per_token=flops,
        memory=tuple(count_memory(parameters.total, stage, num_gpus, weight_bytes, activations) for stage in range(4)),
        context_tokens=context,
        total_tokens=train.total_tokens,
        step_tokens=train.rows_per_step * context,
        num_steps=num_steps(recipe),
        rows_per_step=train.rows_per_step,
        micro_batch_rows=train.micro_batch_rows,
        accumulation=deepspeed["gradient_accumulation_steps"],
        batch_ramp=_list_ramp(recipe),
        sources=sources,
        checkpoint_bytes=parameters.total * saved_bytes,
        checkpoints_bytes=parameters.total * saved_bytes * (train.keep_checkpoints + 1),
        shards_bytes=sum(s.bytes or 0 for s in sources) if shards_measured else train.total_tokens * bytes_per_token,
        shards_measured=shards_measured,
        training_flops=training_flops,
        assumed_peak_flops=H100_FLOPS,
        assumed_mfu=ASSUMED_MFU,
        gpu_hours=training_flops / (ASSUMED_MFU * H100_FLOPS) / 3600,
        hours=training_flops / (ASSUMED_MFU * H100_FLOPS) / 3600 / num_gpus,
        schedule=_sample_schedule(recipe),
        notes=notes,
    )


def mean_mask_rate(mask: MaskConfig, total_tokens: int) -> float:
    """Return the mean of `mask_rate` over the stage: two straight lines, so the middle of each, weighted."""
    warm_up = mask.warmup_tokens / total_tokens
    return warm_up * (mask.start_rate + mask.peak_rate) / 2 + (1 - warm_up) * (mask.peak_rate + mask.end_rate) / 2


def count_memory(num_parameters: int, zero_stage: int, num_gpus: int, weight_bytes: int, activations: int) -> Memory:
    """Return bytes per GPU, partitioned as ZeRO does (arXiv 1910.02054): 1 optimizer, 2 gradients too, 3 weights too.

    weight_bytes: per weight and per gradient, 2 in bf16. Without DeepSpeed's communication buffers.
    """

    def share(bytes_per_parameter: int, from_stage: int) -> int:
        return -(-num_parameters * bytes_per_parameter // (num_gpus if zero_stage >= from_stage else 1))

    parts = (share(weight_bytes, 3), share(weight_bytes, 2), share(OPTIMIZER_BYTES, 1), activations)
    return Memory(zero_stage, *parts, total_bytes=sum(parts))


def _list_ramp(recipe: Recipe) -> tuple[tuple[int, int, int], ...]:
    stretches = [s for s in batch_ramp(recipe) if s.first_step < num_steps(recipe)]
    return tuple((s.first_step, s.first_row * recipe.data.context_tokens, s.step_rows) for s in stretches)


def _check_batch(recipe: Recipe, num_gpus: int) -> None:
    """Raise ConfigError unless the step's micro-batches divide over the GPUs; name the nearest that work."""
    if num_gpus < 1:
        raise ConfigError(f"--gpus: {num_gpus} must be at least 1")
    rows, micro_rows = recipe.train.rows_per_step, recipe.train.micro_batch_rows
    num_micro = rows // micro_rows
    if num_micro % num_gpus == 0:
        return
    fitting = [count for count in range(1, num_micro + 1) if num_micro % count == 0]
    nearest = [max(c for c in fitting if c < num_gpus), *[c for c in fitting if c > num_gpus][:1]]
    remedy = f"nearest that work: {' or '.join(map(str, nearest))} GPUs"
    if rows % num_gpus == 0:
        smaller = max(size for size in range(1, micro_rows + 1) if rows // num_gpus % size == 0)
        remedy += f", or train.micro_batch_rows = {smaller}"
    raise ConfigError(
        f"train.rows_per_step: {rows} rows are {num_micro} micro-batches of {micro_rows} rows, which do not divide "
        f"over {num_gpus} GPUs; {remedy}"
    )


def _look_at_data(recipe: Recipe) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Return what is known about each source, and notes on what is not there yet."""
    data, tokenizer, notes = recipe.data, _find_tokenizer(recipe), []
    there = [source for source in data.sources if _is_shard_set(Path(source.path))]
    if tokenizer is None:
        notes.append(
            f"{data.tokenizer}: not there yet: "
            f"data_tools train-tokenizer --vocab-size {recipe.model.vocab_size} --output {data.tokenizer}"
        )
    notes += [
        f"{source.path}: not there yet: data_tools preprocess --tokenizer {data.tokenizer} --output {source.path}"
        for source in data.sources
        if source not in there
    ]
    if recipe.train.init_from:
        from cmbert.train.checkpoint import find_checkpoint

        if find_checkpoint(Path(recipe.train.init_from)) is None:
            notes.append(f"{recipe.train.init_from}: no checkpoint yet: cmbert train the stage before this one")
    known = {source.path: _describe_shards(source.path) for source in there}
    if tokenizer is not None and there:
        from cmbert.data.loader import check_epochs, open_reader

        found = dataclasses.replace(data, sources=tuple(there))
        reader = open_reader(found, recipe.mask, tokenizer, recipe.train.seed, rows_per_step=recipe.train.rows_per_step)
        blend = reader.blend
        epochs: list[float | None] = [None] * len(there)  # a blend with a source missing says nothing
        if found == data:
            num_rows = rows_before(num_steps(recipe), recipe)
            check_epochs(blend, data, num_rows)
            epochs = [*blend.epochs(num_rows)]
        for source, rows, repeats in zip(there, blend.sources, epochs, strict=True):
            known[source.path] = dataclasses.replace(known[source.path], rows=rows.num_rows, epochs=repeats)
    return tuple(known.get(source.path, Source(source.path)) for source in data.sources), tuple(notes)


def _find_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Return the recipe's tokenizer, or None if it is not there yet. Raises ConfigError when it is not the model's."""
    if not (Path(recipe.data.tokenizer) / TOKENIZER_FILE).is_file():
        return None
    return load_tokenizer(recipe.data.tokenizer, vocab_size=recipe.model.vocab_size)


def _is_shard_set(path: Path) -> bool:
    return (path / MANIFEST_FILE).is_file() or path.with_name(path.name + ".idx").is_file()


def _describe_shards(path: str) -> Source:
    shards = ShardSet(path)
    files = [p.with_name(f"{p.name}.{suffix}") for p in shards.prefixes for suffix in SHARD_SUFFIXES]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Source(path, tokens=shards.num_tokens, bytes=size)


def _sample_schedule(recipe: Recipe) -> tuple[SchedulePoint, ...]:
    total = recipe.train.total_tokens
    return tuple(
        SchedulePoint(
            percent=percent,
            tokens=total * percent // 100,
            learning_rate=learning_rate(total * percent // 100, recipe.schedule, total),
            mask_rate=mask_rate(total * percent // 100, recipe.mask, total),
        )
        for percent in range(0, 101, 10)
    )


def print_plan(plan: Plan, as_json: bool) -> None:
    """Print `plan` as text for people, or as one JSON object."""
    print(json.dumps(dataclasses.asdict(plan), ensure_ascii=False, indent=2) if as_json else describe(plan))


def describe(plan: Plan) -> str:
    """Return `plan` as text with units; what is estimated or assumed says so."""
    parameters, flops = plan.parameters, plan.flops_per_token
    width = max(len(source.path) for source in plan.sources)
    lines = [f"{plan.run_directory} on {plan.num_gpus} GPUs (where there is no GPU, read: CPU processes)", ""]
    lines.append(f"Parameters {parameters.total:>24,}")
    parts = dataclasses.asdict(parameters)
    for part in ("embedding", "attention", "mlp", "norms", "head"):
        lines.append(f"  {part:<18}{parts[part]:>15,}{parts[part] / parameters.total:>8.1%}")
    lines += [
        "",
        f"Compute, GFLOP per token, in rows of one piece of {plan.context_tokens:,} tokens (shorter cost less)",
    ]
    for part, value in dataclasses.asdict(flops).items():
        lines.append(f"  {part.replace('_', ' '):<24}{value / 1e9:>9.4f}{COMPUTE_REMARKS.get(part, '')}")
    lines += [
        "",
        f"Steps {plan.num_steps:>29,}   of {plan.step_tokens:,} tokens, {plan.total_tokens:,} in all",
        f"  one step is {plan.rows_per_step:,} rows = {plan.num_gpus} GPUs x {plan.accumulation} micro-batches x "
        f"{plan.micro_batch_rows} rows",
        *_describe_ramp(plan),
        "",
        f"Memory per GPU, GB, by ZeRO stage (the recipe's: {plan.zero_stage})",
        "  stage   weights  gradients  optimizer  activations*    total*",
    ]
    for memory in plan.memory:
        stage, *sizes = dataclasses.astuple(memory)
        columns = zip(sizes, MEMORY_COLUMNS, strict=True)
        lines.append(f"  {stage:<3}" + "".join(f"{size / 1e9:>{column}.3f}" for size, column in columns))
    lines += [
        "  * an estimate for fused attention, within 10 % of what autograd keeps (tested on a CPU, not measured on a",
        "    GPU); without communication buffers and allocator slack",
        "",
        f"Disk   one checkpoint {gigabytes(plan.checkpoint_bytes)}; kept and being written "
        f"{gigabytes(plan.checkpoints_bytes)}; shards {gigabytes(plan.shards_bytes)}"
        + ("" if plan.shards_measured else " if every token is read once"),
        f"Time   {short(plan.gpu_hours)} GPU-hours, {short(plan.hours)} hours for "
        f"{plan.training_flops:.3g} FLOP, assuming {plan.assumed_mfu:.0%} of "
        f"{plan.assumed_peak_flops / 1e12:.0f} TFLOP/s per GPU (H100, bf16); not for CPUs",
        "",
        f"Data{'tokens':>{width + 16}}{'rows':>14}{'epochs':>9}",
    ]
    for source in plan.sources:
        tokens, rows = ("-" if count is None else f"{count:,}" for count in (source.tokens, source.rows))
        epochs = "-" if source.epochs is None else f"{source.epochs:.2f}"
        lines.append(f"  {source.path:<{width}}{tokens:>18}{rows:>14}{epochs:>9}")
    lines += ["", f"Schedule {'tokens':>19}{'learning rate':>18}{'mask rate':>12}"]
    for point in plan.schedule:
        rates = f"{point.learning_rate:>18.2e}{point.mask_rate:>12.1%}"
        bars = [
            "#" * round(BAR_WIDTH * value / max(getattr(p, name) for p in plan.schedule))
            for name, value in (("learning_rate", point.learning_rate), ("mask_rate", point.mask_rate))
        ]
        lines.append(f"  {point.percent:>3} %{point.tokens:>21,}{rates}  |{bars[0]:<{BAR_WIDTH}}|{bars[1]}".rstrip())
    return "\n".join([*lines, *([""] if plan.notes else []), *(f"Note: {note}" for note in plan.notes)])


def _describe_ramp(plan: Plan) -> list[str]:
    """Return a line for each size of a step, with a bar; nothing without a batch ramp."""
    if len(plan.batch_ramp) == 1:
        return []
    lines = ["", "Batch ramp          from token     from step   rows a step"]
    for step, tokens, rows in plan.batch_ramp:
        bar = "#" * max(round(BAR_WIDTH * rows / plan.rows_per_step), 1)
        lines.append(f"  {tokens:>28,}{step:>14,}{rows:>14,}  |{bar}")
    return lines


def gigabytes(size: float) -> str:
    """Return bytes as people write them: 5.29 GB, 48 MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def short(hours: float) -> str:
    """Return hours with the digits that an assumption deserves."""
    return "under 0.1" if hours < 0.1 else f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}"
