"""The README of an exported folder, filled from the run and its earlier stages. What the run does not say is left out.

How to load the folder is in card_use.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cmbert.config.parameters import count_parameters
from cmbert.config.schema import ModelConfig, Recipe
from cmbert.export.card_use import CODE_LICENCE, front_matter, usage
from cmbert.export.gate import ROUNDINGS, Comparison
from cmbert.export.hf import Format
from cmbert.export.lineage import Lineage, StageFacts
from cmbert.progress import duration
from cmbert.runs.merged import described_steps
from cmbert.schedule import Schedule
from cmbert.tokenizer import Tokenizer

PAPER_TOKENS = 1_200_000_000_000  # both stages (arXiv 2510.12285)
UNDERTRAINED_SHARE = 0.1  # below this share of the paper's tokens the card says so


def render_card(lineage: Lineage, format: Format, measured: Comparison, tokenizer: Tokenizer) -> str:
    """Return the card as Markdown with a YAML head. measured: what the export's gate returned."""
    model = lineage.stages[-1].recipe.model
    sections = [
        front_matter(format, tokenizer, lineage.ancestor.licence if lineage.ancestor else CODE_LICENCE),
        "# Chinese ModernBERT\n",
        _architecture(lineage, format, tokenizer),
        usage(format, model, tokenizer),
        _data(lineage),
        *(_stage(stage, number) for number, stage in enumerate(lineage.stages, 1)),
        _results(lineage, measured),
        _limits(lineage),
    ]
    return "\n".join(sections)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def _architecture(lineage: Lineage, format: Format, tokenizer: Tokenizer) -> str:
    model = lineage.stages[-1].recipe.model
    parameters = count_parameters(model)
    norm = "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm"
    rows = [
        ("parameters", f"{parameters.total:,}, of them {parameters.embedding:,} in the embedding"),
        (
            "layers",
            f"{model.num_layers} x {model.hidden_size}, {model.num_heads} heads, GeGLU of {model.intermediate_size}",
        ),
        (
            "attention",
            f"global in layers {', '.join(map(str, range(0, model.num_layers, model.global_every)))}; in the others "
            f"{model.local_window // 2} tokens to each side",
        ),
        ("positions", f"RoPE, base {model.rope_base_global:,.0f} (global), {model.rope_base_local:,.0f} (local)"),
        ("norm", f"{norm}, no biases but the decoder's"),
        ("longest text", f"{model.max_length:,} tokens, [CLS] and [SEP] included"),
        ("vocabulary", _vocabulary(model, tokenizer)),
        ("weights here", "fp32"),
    ]
    masking = " and whole-word masking" if lineage.stages[-1].recipe.mask.unit == "word" else ""
    text = f"A masked language model for Chinese with ModernBERT's architecture, pretrained with `cmbert`{masking}.\n"
    if format != "onnx" and model.norm == "layernorm":
        text += "It is a stock ModernBERT: transformers loads it without extra code.\n"
    return f"{text}\n{_table(('', ''), rows)}"


def _vocabulary(model: ModelConfig, tokenizer: Tokenizer) -> str:
    kind = "byte-level BPE tokens" if tokenizer.is_byte_level else "tokens"
    blank = model.vocab_size - tokenizer.vocab_size
    return f"{tokenizer.vocab_size:,} {kind}" + (f", and {blank} rows that no token has" if blank else "")


def _data(lineage: Lineage) -> str:
    head = ("stage", "source", "documents", "tokens", "weight", "tokens read", "epochs read")
    rows = []
    for stage in lineage.stages:
        for source in stage.sources:
            epochs = f"{source.tokens_read / source.tokens:.2f}" if source.tokens and source.tokens_read else ""
            counts = [f"{value:,}" if value is not None else "" for value in (source.documents, source.tokens)]
            weight = f"{source.weight:g}" if source.weight else "by size"
            read = f"{source.tokens_read:,}" if source.tokens_read is not None else ""
            rows.append((stage.name, source.name, *counts, weight, read, epochs))
            rows += [
                ("", f"of it: {name}", f"{part['documents']:,}", f"{part['tokens']:,}", "", "", "")
                for name, part in source.parts.items()
            ]
    changed = [stage.name for stage in lineage.stages if stage.recipe.data.changes]
    note = f"The weights changed in the course of {', '.join(changed)}.\n" if changed else ""
    counted = f"{note}Tokens are counted without [CLS] and [SEP].\n"
    return f"## Training data\n\n{_table(head, rows)}\n{counted}\n{_decontamination(lineage)}"


def _decontamination(lineage: Lineage) -> str:
    """Return which evaluation texts were looked for in the training data, and where nothing is known of that."""
    sources = {(source.name, str(source.decontamination)): source for s in lineage.stages for source in s.sources}
    lines = [
        f"{source.name} was decontaminated against {', '.join(found)}: documents that hold a text of theirs, or much "
        f"of one, were dropped ({', '.join(f'{name} {count:,}' for name, count in found.items())})."
        for source in sources.values()
        if (found := source.decontamination)
    ]
    unknown = list(dict.fromkeys(source.name for source in sources.values() if not source.decontamination))
    if unknown:
        lines.append(f"No decontamination is on record for {', '.join(unknown)}: evaluation texts may be in it.")
    return "\n".join(lines) + "\n"


def _stage(stage: StageFacts, number: int) -> str:
    recipe, state = stage.recipe, stage.state
    schedule, optimizer = recipe.schedule, recipe.optimizer
    rows = []
    if stage.branch:
        what = f"{stage.branch.run.name} at step {stage.branch.state.step:,}, with its optimizer and place in the data"
        rows.append(("branch of", what))
    elif recipe.train.init_from:
        kind = "the smaller model" if recipe.train.init_tiling else "the weights"
        rows.append(("started from", f"{kind} of {Path(recipe.train.init_from).name}"))
    rows.append(("steps", f"{state.step:,} of {Schedule.of(recipe).num_steps:,}"))
    if stage.merge:
        rows.append(("weights", f"the mean of those after {described_steps(stage.merge)}"))
    rows.append(("tokens seen", f"{state.tokens:,} of {recipe.train.total_tokens:,} row positions"))
    if stage.records:
        real = sum(record["real_tokens"] for record in stage.records)
        rows.append(("of them text", f"{real:,} tokens, the rest padding"))
    rows.append(("batch", f"{recipe.train.rows_per_step:,} rows of {recipe.data.context_tokens:,} tokens"))
    if recipe.train.ramp_tokens:
        ramp = f"from {recipe.train.ramp_start_rows:,} rows, over {recipe.train.ramp_tokens:,} tokens"
        rows.append(("batch ramp", ramp))
    warmup = f"warm-up {schedule.warmup_tokens:,} tokens" if schedule.warmup_tokens else "no warm-up"
    rows.append(("learning rate", f"{schedule.kind}, {schedule.lr_max:g} to {schedule.lr_min:g}, {warmup}"))
    rows.append(("mask rate", _mask_rate(recipe)))
    betas = f"betas {optimizer.beta1:g} and {optimizer.beta2:g}"
    rest = f"weight decay {optimizer.weight_decay:g}, clipping {optimizer.gradient_clip:g}"
    momentum = f", momentum {optimizer.momentum:g}; AdamW for the rest" if optimizer.kind == "muon" else ""
    rows.append(("optimizer", f"{optimizer.kind}{momentum}, {betas}, {rest}"))
    rows.append(("ranks", f"{state.world_size}, ZeRO {state.zero_stage}"))
    if stage.precision:
        rows.append(("precision", stage.precision))
    if stage.records:
        seconds = sum(record["step_seconds"] + record["data_wait_seconds"] for record in stage.records)
        rows.append(("time in steps", " ".join(duration(seconds))))
    rows += _environment(stage.environment)
    events = Counter(event["kind"] for event in stage.events)
    if events:
        rows.append(("events", ", ".join(f"{count} x {kind}" for kind, count in sorted(events.items()))))
    return f"## Stage {number}: {stage.name}\n\n{_table(('', ''), rows)}"


def _mask_rate(recipe: Recipe) -> str:
    mask = recipe.mask
    rates = [mask.peak_rate, mask.end_rate]
    if mask.warmup_tokens:
        rates.insert(0, mask.start_rate)
    path = " -> ".join(f"{100 * rate:g} %" for rate, _ in groupby(rates))
    peak = f", peak at {mask.warmup_tokens:,} tokens" if mask.warmup_tokens else ""
    return f"{path} of the tokens, whole {mask.unit}s{peak}" if mask.unit == "word" else f"{path} of the tokens{peak}"


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = [f"{name} {version}" for name, version in environment.get("versions", {}).items() if version]
    rows = [("software", ", ".join(versions)), ("code", f"git commit {environment.get('git_commit')}")]
    rows = [row for row, known in zip(rows, (versions, environment.get("git_commit")), strict=True) if known]
    if "platform" in environment:
        rows.append(("platform", environment["platform"]))
    return rows


def _results(lineage: Lineage, measured: Comparison) -> str:
    errors = [("ours, packed", f"{measured.rounding:.1e}")]
    errors += [(f"{name}, padded", f"{error:.1e}") for name, error in measured.errors.items()]
    return (
        f"## Results\n\n{_held_out(lineage)}\n{_merged(lineage)}"
        "Before this folder appeared its logits in fp32 were compared with those of the model in training in fp64, "
        f"on {measured.num_tokens:,} tokens of training text, short and long texts "
        f"in one batch, padded at either side (allowed: {ROUNDINGS:g} times the error of our own program, "
        f"{measured.allowed:.1e}):\n\n{_table(('program', 'largest error'), errors)}"
    )


def _held_out(lineage: Lineage) -> str:
    """Return what the runs scored of held-out text up to the exported checkpoint, and what a guess would lose."""
    rows = []
    for stage in lineage.stages:
        scored = [record for record in stage.records if record.get("heldout_loss") is not None]
        if scored:
            last, unigram = scored[-1], stage.unigram_loss
            against = ("–", "–") if unigram is None else (f"{unigram:.4f}", f"{unigram - last['heldout_loss']:.4f}")
            rows.append((
                stage.name, Path(stage.recipe.evaluation.shards).name, f"{last['step'] + 1:,}",
                f"{last['heldout_loss']:.4f}", *against, f"{last['heldout_accuracy']:.4f}",
                f"{last['heldout_masked_tokens']:,.0f}", f"{stage.recipe.data.context_tokens:,}",
            ))  # fmt: skip
    if not rows:
        named = any(stage.recipe.evaluation.shards for stage in lineage.stages)
        why = "no step of this checkpoint was scored" if named else "its recipe names no evaluation.shards"
        unigram = lineage.stages[-1].unigram_loss
        guess = "" if unigram is None else f" A guess without context would lose {unigram:.4f} nats a token.\n"
        return f"The run scored no held-out text: {why}.{guess or chr(10)}"
    head = (
        "stage",
        "held-out set",
        "after step",
        "loss, nats per masked token",
        "unigram, nats",
        "gap, nats",
        "accuracy",
    )
    source = (
        "Loss and accuracy are the run's own (`heldout_loss` of its `metrics.jsonl`: 15 % of the tokens hidden, in the "
        "training's precision). Unigram: entropy of the training tokens in nats, what a guess without context loses; "
        "the gap is what the model knows beyond that.\n"
    )
    table = _table((*head, "masked tokens", "context"), rows)
    return f"Held-out text, in training:\n\n{table}\n{source}"


def _merged(lineage: Lineage) -> str:
    """Return what the checkpoints whose weights were averaged, and their mean, scored of held-out text."""
    text = ""
    for stage in lineage.stages:
        if merge := stage.merge:
            scored = [(f"{part['step']:,}", part) for part in merge["steps"]] + [("merged", merge["merged"])]
            rows = [(name, f"{s['heldout_loss']:.4f}", f"{s['masked_accuracy']:.4f}") for name, s in scored]
            table = _table(("after step", "loss, nats per masked token", "accuracy"), rows)
            text += (
                f"The weights of {stage.name} are merged ones; on {merge['heldout']}, as `cmbert eval`:\n\n{table}\n"
            )
    return text


def _limits(lineage: Lineage) -> str:
    last, tokens = lineage.stages[-1], sum(stage.own_tokens for stage in lineage.stages)
    model, total = last.recipe.model, Schedule.of(last.recipe).num_steps
    lines = []
    if ancestor := lineage.ancestor:
        licence = ancestor.licence or "not named by its card"
        lines.append(
            f"Started from `{ancestor.name}`, whose training is not told here; its licence ({licence}) holds for these "
            "weights, too."
        )
    if tokens < UNDERTRAINED_SHARE * PAPER_TOKENS and not (lineage.lost or lineage.ancestor):
        share = tokens / PAPER_TOKENS
        lines.append(
            f"Undertrained: {tokens:,} tokens seen in all stages, {tokens / count_parameters(model).total:,.1f} per "
            f"parameter. The paper's model (arXiv 2510.12285) saw {PAPER_TOKENS:,}; this is {100 * share:.2g} %."
        )
    if last.state.step < total:
        lines.append(
            f"A checkpoint in mid-training: step {last.state.step:,} of {total:,}, schedules not at their end."
        )
    if lineage.lost:
        lines.append(
            f"Started from `{lineage.lost}`, which is no longer there: its data and schedule are not known here."
        )
    longest = max(stage.recipe.data.context_tokens for stage in lineage.stages)
    if longest < model.max_length:
        lines.append(f"Trained on at most {longest:,} tokens at a time; what it does with longer text is not known.")
    scored = [record.get("heldout_loss") for stage in lineage.stages for record in stage.records]
    if not any(loss is not None for loss in scored) and not any(stage.merge for stage in lineage.stages):
        lines.append("Not evaluated: the run scored no held-out text.")
    lines += [
        "The run holds no result on a downstream task.",
        "Sentence vectors are plain means of hidden states; nothing has trained them to be compared.",
        "It repeats what its training data say, wrong and unfair things included.",
        "The licence in the head of this file is that of the code. Whether the weights may be passed on depends on the "
        "training data: check those before you publish.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"
