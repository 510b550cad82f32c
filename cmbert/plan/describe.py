"""A plan as text, in the long form, for clusters."""

import dataclasses
import textwrap

from cmbert.plan.memory import Memory, usable_bytes
from cmbert.plan.plan import Plan
from cmbert.progress import duration

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")
BAR_WIDTH = 16  # characters of the drawn schedule's highest value
TEXT_WIDTH = 112  # characters
SCHEDULE_LINES = 10  # beside the first
COMPUTE_REMARKS = {
    "forward": "   the encoder: the three above",
    "head": "   at masked positions only, mean mask rate",
    "training": "   3 x (forward + head)",
}


def describe(plan: Plan) -> str:
    """Return `plan` as text with units; what is estimated or assumed says so."""
    parts = (
        [f"{plan.run_directory} on {plan.num_gpus} GPUs (where there is no GPU, read: CPU processes)"],
        _model(plan),
        _steps(plan),
        _muon(plan),
        _memory(plan),
        _disk(plan),
        _scaling(plan),
        _failures(plan),
        describe_sources(plan),
        _schedule(plan),
        [f"Note: {note}" for note in plan.notes],
    )
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _model(plan: Plan) -> list[str]:
    parameters, flops = plan.parameters, plan.flops_per_token
    lines, parts = [f"Parameters {parameters.total:>24,}"], dataclasses.asdict(parameters)
    for part in ("embedding", "attention", "mlp", "norms", "head"):
        lines.append(f"  {part:<18}{parts[part]:>15,}{parts[part] / parameters.total:>8.1%}")
    lines += [
        "",
        f"Compute, GFLOP per token, in rows of one segment of {plan.context_tokens:,} tokens (shorter cost less)",
    ]
    for part, value in dataclasses.asdict(flops).items():
        lines.append(f"  {part.replace('_', ' '):<24}{value / 1e9:>9.4f}{COMPUTE_REMARKS.get(part, '')}")
    return lines


def _steps(plan: Plan) -> list[str]:
    lines = [
        f"Steps {plan.num_steps:>29,}   of {plan.step_tokens:,} tokens, {plan.total_tokens:,} in all",
        f"  one step is {plan.rows_per_step:,} rows = {plan.num_gpus} GPUs x {plan.accumulation} micro-batches x "
        f"{plan.micro_batch_rows} rows",
    ]
    if len(plan.batch_ramp) > 1:
        lines += ["", "Batch ramp          from token     from step   rows a step"]
        for step, tokens, rows in plan.batch_ramp:
            bar = "#" * max(round(BAR_WIDTH * rows / plan.rows_per_step), 1)
            lines.append(f"  {tokens:>28,}{step:>14,}{rows:>14,}  |{bar}")
    return lines


def _muon(plan: Plan) -> list[str]:
    muon = plan.muon
    if muon is None:
        return []
    owners = "every GPU owns some" if muon.num_owners == plan.num_gpus else f"{muon.num_owners} GPUs own one each"
    return [
        f"Muon moves {muon.parameters:,} parameters, {muon.num_matrices:,} matrices; {owners}",
        f"  Newton-Schulz  {muon.flops / 1e12:,.3g} TFLOP a step, {muon.flops_share:.2%} of all; "
        f"{muon.slowest_flops / 1e12:,.3g} on the GPU that owns most: {_seconds(muon.compute_seconds)}*",
        f"  exchange       {gigabytes(muon.exchanged_bytes)} a step sent by the GPU that sends most, there and back: "
        f"{_seconds(muon.exchange_seconds)}*",
        f"  together       {muon.step_share:.2%} of a step's time*",
        "  * an estimate, at the assumed rates of training and network, nothing overlapped",
    ]


def _memory(plan: Plan) -> list[str]:
    usable = usable_bytes(plan.assumptions)
    lines = [
        f"Memory per GPU, GB, at the fullest moment, by ZeRO stage (the recipe's: {plan.zero_stage})*",
        "  stage   weights  gradients  optimizer  activations  buffers     total  fullest in",
    ]
    for found in plan.memory:
        sizes = [getattr(found, f"{part}_bytes") for part in (*MEMORY_PARTS, "total")]
        columns = zip(sizes, (12, 11, 11, 13, 9, 10), strict=True)
        cells = "".join(f"{size / 1e9:>{column}.2f}" for size, column in columns)
        lines.append(f"  {found.zero_stage:<3}{cells}  {found.moment}")
    table = plan.memory_table
    sizes_of = sorted({found.micro_batch_rows for found in table})
    lines += [
        "",
        f"Memory by micro-batch, GB; - = more than the {usable / 1e9:.0f} GB that tensors may fill "
        f"({plan.assumptions.usable_share:.0%} of {plan.assumptions.gpu_memory_gb:g})",
        "  stage  checkpointed" + "".join(f"{count_rows(rows):>10}" for rows in sizes_of),
    ]
    by_setting = {(m.zero_stage, m.activation_checkpoint_fraction, m.micro_batch_rows): m for m in table}
    for stage, share in dict.fromkeys((m.zero_stage, m.activation_checkpoint_fraction) for m in table):
        cells = "".join(_memory_cell(by_setting[stage, share, rows], usable, plan) for rows in sizes_of)
        lines.append(f"  {stage:<7}{share:<12g}{cells}")
    return [
        *lines,
        "  * an estimate, for fused attention: within 10 % of what DeepSpeed holds on CPU ranks (tested), not measured",
        "    on a GPU. [ ] = this recipe",
    ]


def _memory_cell(memory: Memory, usable: float, plan: Plan) -> str:
    own = (plan.zero_stage, plan.activation_checkpoint_fraction, plan.micro_batch_rows)
    text = f"{memory.total_bytes / 1e9:.1f}" if memory.total_bytes <= usable else "-"
    if (memory.zero_stage, memory.activation_checkpoint_fraction, memory.micro_batch_rows) == own:
        text = f"[{text}]"
    return f"{text:>10}"


def _disk(plan: Plan) -> list[str]:
    data, clean, assumed = plan.data, plan.data.clean, plan.assumptions
    low, high = data.ledger_bytes
    return [
        f"Disk   checkpoint {gigabytes(plan.checkpoint_bytes)}; all kept and one being written "
        f"{gigabytes(plan.checkpoints_bytes)}; shards {gigabytes(data.shards_bytes)}"
        + ("" if data.shards_measured else " if every token is read once"),
        f"       ledger {gigabytes(low)} to {gigabytes(high)} (1.3 to 3.3 bytes for each of {data.ledger_segments:.2g} "
        f"segments; {data.document_tokens:,.0f} tokens a document{_assumed(data.document_tokens_measured)})",
        f"Text   {gigabytes(data.text_bytes)} ({data.text_bytes_per_token:.2f} bytes a token"
        f"{_assumed(data.text_bytes_measured)}): {short(data.preprocess_core_hours)} core-hours to preprocess at "
        f"{assumed.preprocess_mb_per_second:g} MB/s a core",
        f"Clean  {gigabytes(clean.raw_bytes)} of raw text, if {assumed.clean_kept_share:.0%} of it stays (assumed): "
        f"{short(clean.core_hours)} core-hours at {assumed.clean_mb_per_second:g} MB/s a core;",
        f"       on disk {gigabytes(clean.work_bytes)} between the passes and {gigabytes(clean.output_bytes)} cleaned; "
        f"{gigabytes(clean.cluster_bytes)} of memory to group {clean.documents:.2g} documents",
        f"Time   {short(plan.hours)} hours, {short(plan.hours * plan.num_gpus)} GPU-hours, {short(plan.gpu_hours)} of "
        f"them computing: {plan.training_flops:.3g} FLOP,",
        f"       assuming {assumed.mfu:.0%} of {assumed.peak_flops / 1e12:.0f} TFLOP/s per GPU (H100); not for CPUs",
    ]


def _assumed(measured: bool) -> str:
    return "" if measured else ", assumed"


def _scaling(plan: Plan) -> list[str]:
    assumed = plan.assumptions
    if not plan.scaling.points:
        return [f"Scaling: {plan.scaling.limit}"]
    lines = [
        f"Scaling, at {assumed.mfu:.0%} of the peak and {assumed.bandwidth_gbits:g} Gbit/s per GPU between nodes of "
        f"{assumed.node_gpus}, {assumed.nvlink_gbytes:g} GB/s inside, nothing overlapped (assumed)",
        "     GPUs  micro-batch  a GPU   compute  communication      step      hours  GPU-hours  efficiency",
    ]
    for point in plan.scaling.points:
        times = (
            point.compute_seconds,
            point.communication_seconds,
            point.compute_seconds + point.communication_seconds,
        )
        cells = "".join(f"{_seconds(value):>{width}}" for value, width in zip(times, (10, 15, 10), strict=True))
        lines.append(
            f"  {point.num_gpus:>7,}{count_rows(point.micro_batch_rows):>13}{'x ' + str(point.accumulation):>7}{cells}"
            f"{short(point.hours):>11}{short(point.gpu_hours):>11}{point.efficiency:>12.1%}"
        )
    indent = "  "
    return [*lines, *textwrap.wrap(plan.scaling.limit, TEXT_WIDTH, initial_indent=indent, subsequent_indent=indent)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _failures(plan: Plan) -> list[str]:
    failures, assumed = plan.failures, plan.assumptions
    noun = "node" if failures.num_nodes == 1 else "nodes"
    lines = [
        f"Failures on {failures.num_nodes} {noun}: one in {short(failures.job_mtbf_hours)} hours, "
        f"{failures.expected:.2g} in the stage (a node fails every {assumed.node_mtbf_hours:,.0f} hours; a checkpoint",
        f"  stops training for {assumed.stall_seconds:g} s and is there {assumed.write_seconds:g} s later, a restart "
        f"takes {assumed.restart_minutes:g} min: assumed)",
    ]
    if failures.needless:
        return [*lines, f"  {failures.needless}"]
    lines.append("  checkpoints                    every     standing    redone   restarts      lost")
    for lost in failures.lost_times:
        every = f"{lost.interval_steps:,} steps = {' '.join(duration(lost.interval_seconds))}"
        shares = (lost.stall_share, lost.redone_share, lost.restart_share, lost.lost_share)
        cells = "".join(f"{share:>{width}.2%}" for share, width in zip(shares, (9, 9, 10, 10), strict=True))
        lines.append(f"  {lost.name:<24}{every:>22}{cells}")
    best = failures.lost_times[0]
    return [
        *lines,
        f"  best: {short(best.lost_hours)} hours lost beside {short(plan.hours)} (Daly's estimate)",
    ]


def describe_sources(plan: Plan) -> list[str]:
    """Return a line for each source: tokens, rows, epochs."""
    width = max(len(source.path) for source in plan.sources)
    lines = [f"Data{'tokens':>{width + 16}}{'rows':>14}{'epochs':>9}"]
    for source in plan.sources:
        tokens, rows = ("-" if count is None else f"{count:,}" for count in (source.tokens, source.rows))
        epochs = "-" if source.epochs is None else f"{source.epochs:.2f}"
        lines.append(f"  {source.path:<{width}}{tokens:>18}{rows:>14}{epochs:>9}")
    return lines


def _schedule(plan: Plan) -> list[str]:
    lines = [f"Schedule {'tokens':>19}{'learning rate':>18}{'mask rate':>12}"]
    points = plan.schedule[:: (len(plan.schedule) - 1) // SCHEDULE_LINES]
    highest_rate, highest_mask = max(p.learning_rate for p in points), max(p.mask_rate for p in points)
    for point in points:
        rates = f"{point.learning_rate:>18.2e}{point.mask_rate:>12.1%}"
        bars = [_bar(point.learning_rate, highest_rate), _bar(point.mask_rate, highest_mask)]
        lines.append(f"  {point.percent:>3.0f} %{point.tokens:>21,}{rates}  |{bars[0]:<{BAR_WIDTH}}|{bars[1]}".rstrip())
    return lines


def _bar(value: float, highest: float) -> str:
    return "#" * round(BAR_WIDTH * value / highest)


def count_rows(rows: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if rows == 1 else f"{rows:,} rows"


def gigabytes(size: float) -> str:
    """Return bytes as people write them: 2.34 TB, 5.29 GB, 48 MB."""
    if size >= 1e12:
        return f"{size / 1e12:,.2f} TB"
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def short(hours: float) -> str:
    """Return hours with the digits that an assumption deserves."""
    return "under 0.1" if hours < 0.1 else f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}"
