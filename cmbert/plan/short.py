"""The plan of a small run on one screen: time from measured steps, memory, disk, epochs."""

import dataclasses
import textwrap

from cmbert.files.whole import json_text
from cmbert.plan.describe import TEXT_WIDTH, count_rows, describe, describe_sources, gigabytes
from cmbert.plan.machine import MEASURED_STEPS, Machine
from cmbert.plan.plan import Plan
from cmbert.progress import duration

INDENT = 12  # characters: the width of a line's name
LONG_FORM = "Every ZeRO stage, more GPUs, failures, the schedule: --long; another number of GPUs or processes: --gpus N"


def print_plan(plan: Plan, as_json: bool) -> None:
    """Print `plan` as text for people, or as one JSON object."""
    print(json_text(dataclasses.asdict(plan), indent=2) if as_json else describe_plan(plan))


def describe_plan(plan: Plan) -> str:
    """Return `plan` as text, in the form that it is for."""
    if plan.is_small:
        return describe_short(plan)
    measured = "\n".join(_wrapped("Time here", describe_time(plan))) + "\n\n" if plan.measured else ""
    return measured + describe(plan)


def describe_short(plan: Plan) -> str:
    """Return the plan of a small run as one screen of text."""
    lines = {
        "Model": f"{plan.parameters.total:,} parameters, {plan.parameters.embedding_share:.0%} of them the embedding",
        "Steps": f"{plan.num_steps:,} of {plan.step_tokens:,} tokens: {count_rows(plan.rows_per_step)} of "
        f"{plan.context_tokens:,} tokens = {describe_processes(plan)} x {plan.accumulation} micro-batch"
        f"{'' if plan.accumulation == 1 else 'es'} of {count_rows(plan.micro_batch_rows)}",
        "Tokens": f"{plan.total_tokens:,} in all",
        "Time": describe_time(plan),
        "Memory": _memory(plan),
        "Disk": f"checkpoints {gigabytes(plan.checkpoints_bytes)}: {gigabytes(plan.checkpoint_bytes)} each, all that "
        f"are kept and one being written; shards {gigabytes(plan.data.shards_bytes)}"
        + ("" if plan.data.shards_measured else " if every token is read once"),
    }
    parts = [
        [f"{plan.run_directory} on {describe_processes(plan)}{_place(plan.machine)}", ""]
        + [line for name, text in lines.items() for line in _wrapped(name, text)],
        describe_sources(plan),
        [f"Note: {note}" for note in plan.notes],
        [LONG_FORM],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def describe_time(plan: Plan) -> str:
    """Return how long the stage takes, from measured steps, or how to measure them."""
    measured = plan.measured
    if measured is None:
        return f"run with --measure: {MEASURED_STEPS} steps of this training on this machine, nothing stays on disk"
    rows = "made-up rows" if measured.made_up_rows else "its own rows"
    heldout = f", {_say(measured.heldout_hours)} of them held-out scores" if measured.heldout_hours else ""
    return (
        f"{_say(measured.hours)}{heldout}: {plan.num_steps:,} steps of {measured.step_seconds:.3g} s, "
        f"{measured.tokens_per_second:,.0f} tokens/s (measured now: the median of {measured.num_steps} steps of "
        f"{rows}; {measured.start_seconds:.0f} s until the first)"
    )


def describe_memory(plan: Plan) -> tuple[float, str]:
    """Return the bytes that a process needs, and what they rest on."""
    if plan.measured:
        return plan.measured.memory_bytes, "measured"
    if plan.machine and plan.machine.num_gpus:
        return plan.memory[plan.zero_stage - 1].total_bytes, "estimated"
    return plan.host_bytes, "estimated, Python and its libraries among them"


def _memory(plan: Plan) -> str:
    size, source = describe_memory(plan)
    text = f"{gigabytes(size)} a {'GPU' if plan.machine and plan.machine.num_gpus else 'process'} ({source})"
    if plan.machine is None:
        return text
    there, num = plan.machine.memory_bytes, 1 if plan.machine.num_gpus else plan.num_gpus
    text += f"; {gigabytes(there)} are {'there' if plan.machine.num_gpus else 'free'} here"
    too_much = num * size > there and not plan.measured
    return text + (": too little; lower train.micro_batch_rows or train a smaller model" if too_much else "")


def describe_processes(plan: Plan) -> str:
    """Return how many GPUs or processes in words."""
    noun = "GPU" if plan.machine and plan.machine.num_gpus else "process"
    plural = "s" if noun == "GPU" else "es"
    return f"{plan.num_gpus} {noun}{'' if plan.num_gpus == 1 else plural}"


def _place(machine: Machine | None) -> str:
    if machine is None:
        return ""
    return f" ({machine.name})" if machine.num_gpus else f" (this machine: {machine.num_cores} CPU cores, no GPU)"


def _say(hours: float) -> str:
    return " ".join(duration(3600 * hours))


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, TEXT_WIDTH, initial_indent=f"{name:<{INDENT}}", subsequent_indent=" " * INDENT)
