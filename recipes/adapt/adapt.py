"""`make adapt`: a model made better on your own text, and what it forgets of other text.

--model is a run of `cmbert train`, a folder of `cmbert export` or `cmbert import`, or another's folder of ModernBERT's
family, which is imported. Each step is a command anyone can type; one that is done is not done again.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmbert.config.defaults import rows_per_step

EXIT_USER_ERROR, EXIT_STOPPED = 2, 75
PASSES = 4  # over the domain's text: four are nearly worth new text (arXiv 2305.16264)
REPLAY = 0.2  # of the rows from general text, where it is given: README.md has what it saves and costs
CONTEXT = 512  # tokens of a row, if the model's own recipe does not say
WARMUP = 100  # of the tokens
MASK_RATE = 0.3  # throughout; README.md has 15 % beside it
EVALUATIONS, PATIENCE = 10, 3  # of the budget, and how many without a lower loss on the domain end the training
RECIPE = """# Written by recipes/adapt/adapt.py; what its numbers are for: recipes/adapt/README.md.
run_directory = {run}

[model]
{model}

[data]
tokenizer = {tokenizer}
context_tokens = {context}
sources = [{sources}]

[mask]
start_rate = {mask}
peak_rate = {mask}
end_rate = {mask}
warmup_tokens = 0

[optimizer]
{optimizer}

[schedule]
kind = "linear"
{rates}
[train]
init_from = {init_from}
total_tokens = {tokens}
checkpoint_every_steps = {every}
keep_checkpoints = 2

[evaluation]
shards = {heldout}
other_shards = [{others}]
every_steps = {every}
max_rows = 32
"""


class StepError(Exception):
    """A command that failed has said why; this is its exit code."""


def call(*words: object, stop_when: Callable[[], bool] | None = None) -> None:
    """Run one command of ours to its end, or until `stop_when`, asked every second. Raises StepError."""
    command = [str(word) for word in words]
    print(f"\n   $ {shlex.join(command)}", flush=True)
    child, asked = subprocess.Popen([sys.executable, "-m", *command]), False
    while True:
        try:
            code = child.wait(1 if stop_when else None)
            break
        except subprocess.TimeoutExpired:
            if not asked and stop_when and stop_when():
                child.send_signal(signal.SIGTERM)  # it saves a checkpoint and leaves
                asked = True
        except KeyboardInterrupt:
            print("\nstopping ...", file=sys.stderr)  # the terminal sends it to the child, too
    if code and not (asked and code == EXIT_STOPPED):
        raise StepError(code)


def origin_of(model: Path, out: Path) -> dict[str, Any]:
    """Return the recipe that a start from `model` begins with; import another's first."""
    if (model / "config.json").is_file():
        if not (out / "start").exists():
            call("cmbert", "import", model, "--output", out / "start")
        return tomllib.loads((out / "start" / "start.toml").read_text(encoding="utf-8"))
    run = model.parent.parent if model.parent.name == "checkpoints" else model
    if not (run / "resolved.toml").is_file():
        print(f"--model {model}: neither a run of cmbert train nor a model folder (config.json)", file=sys.stderr)
        raise StepError(EXIT_USER_ERROR)
    recipe = tomllib.loads((run / "resolved.toml").read_text(encoding="utf-8"))
    recipe["train"]["init_from"] = str(model)
    return recipe


def make_shards(paths: list[str], name: str, out: Path, tokenizer: str) -> int:
    """Clean text and make shards of it, some of it held out; return the tokens to train on."""
    heldout, text = out / f"{name}_heldout_text", out / f"{name}_text"
    call("data_tools", "clean", "--input", *paths, "--heldout", heldout)
    call("data_tools", "clean", "--input", *paths, "--output", text, "--against", heldout)
    for source, shards in ((text, f"{name}_shards"), (heldout, name)):
        call("data_tools", "preprocess", "--tokenizer", tokenizer, "--input", source, "--output", out / shards)
    manifest = json.loads((out / f"{name}_shards" / "manifest.json").read_text(encoding="utf-8"))
    return sum(shard["tokens"] for shard in manifest["shards"])


def quoted(value: object) -> str:
    """Return a value as TOML."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def table(values: dict[str, Any]) -> str:
    """Return the lines of a TOML table."""
    return "\n".join(f"{key} = {quoted(value)}" for key, value in values.items())


def write_recipe(origin: dict[str, Any], options: argparse.Namespace, tokens: int, name: str) -> None:
    """Write OUT/NAME, a recipe for `tokens` row positions."""
    out, sets = options.output, ["domain", *(["general"] if options.general else [])]
    context = origin["data"].get("context_tokens") or min(CONTEXT, origin["model"]["max_length"])
    steps = tokens // (rows_per_step(tokens, context) * context)
    shares = {"domain": 1 - options.replay, "general": options.replay}
    peak = options.learning_rate
    text = RECIPE.format(
        run=quoted(out / "run"),
        model=table(origin["model"]),
        tokenizer=quoted(origin["data"]["tokenizer"]),
        context=context,
        sources=", ".join(
            f"{{ path = {quoted(out / f'{name}_shards')}, weight = {shares[name]:g} }}" for name in sets if shares[name]
        ),
        mask=options.mask_rate,
        optimizer=table(origin.get("optimizer", {"kind": "adamw"})),
        rates=f"lr_max = {peak:.3g}\nwarmup_tokens = {tokens // WARMUP}\n" if peak else "",
        init_from=quoted(origin["train"]["init_from"]),
        tokens=tokens,
        every=max(1, steps // EVALUATIONS),
        heldout=quoted(out / "domain"),
        others=", ".join(quoted(out / name) for name in sets[1:]),
    )
    (out / name).write_text(text, encoding="utf-8")


def tokens_in(hours: float, options: argparse.Namespace, recipe: Path) -> int:
    """Return how many row positions this machine trains on in so many hours, by ten measured steps of the recipe."""
    command = ["cmbert", "plan", recipe, "--gpus", options.processes, "--measure", "--json"]
    said = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False)
    if said.returncode:
        print(said.stderr, end="", file=sys.stderr)
        raise StepError(said.returncode)
    plan = json.loads(said.stdout)
    measured = plan["measured"]
    left = hours - measured["heldout_hours"] - measured["start_seconds"] / 3600
    if left <= 0:
        print(
            f"--hours {hours:g}: start and held-out scores alone take {hours - left:.3f} here; give more",
            file=sys.stderr,
        )
        raise StepError(EXIT_USER_ERROR)
    tokens = int(plan["total_tokens"] * left / measured["training_hours"])
    print(f"\n   {measured['tokens_per_second']:,.0f} tokens/s here: {hours:g} hours are {tokens:,} tokens")
    return tokens


def evaluations(run: Path) -> list[tuple[int, float, list[float]]]:
    """Return step, loss on the domain and on the other sets, of each evaluation of a run so far."""
    if not (run / "metrics.jsonl").is_file():
        return []
    whole = (run / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
    records = [json.loads(line) for line in whole.splitlines() if '"heldout_loss"' in line]
    return [(r["step"] + 1, r["heldout_loss"], r.get("heldout_other_losses", [])) for r in records]


def falls_no_more(run: Path) -> bool:
    """Return whether the domain's held-out loss has not fallen for PATIENCE evaluations."""
    losses = [loss for _, loss, _ in evaluations(run)]
    return len(losses) > PATIENCE and min(losses[-PATIENCE:]) >= min(losses[:-PATIENCE])


def adapt(options: argparse.Namespace) -> None:
    """Do what is not done yet."""
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    origin = origin_of(options.model, out)
    tokenizer, started = origin["data"]["tokenizer"], time.monotonic()
    tokens = PASSES * make_shards(options.text, "domain", out, tokenizer)
    if options.general:
        make_shards(options.general, "general", out, tokenizer)
        tokens = int(tokens / (1 - options.replay))
    if (out / "recipe.toml").is_file():
        print(f"\n   {out}/recipe.toml holds; for other options name another --output, or remove it and {out}/run")
    else:
        tokens = options.tokens or tokens
        if options.hours:
            write_recipe(origin, options, tokens, "measured.toml")
            tokens = tokens_in(options.hours, options, out / "measured.toml")
        write_recipe(origin, options, tokens, "recipe.toml")
    sets = [f"{name}={out / name}" for name in ("domain", "general") if (out / name).is_dir()]
    recipe = tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))
    score = ["--context", recipe["data"]["context_tokens"], "--data", *sets, "--output"]
    if not (out / "before.json").is_file():
        call("cmbert", "eval", recipe["train"]["init_from"], *score, out / "before.json")
    stop_when = (lambda: False) if options.to_the_end else (lambda: falls_no_more(out / "run"))
    if not stop_when():
        call("cmbert", "train", out / "recipe.toml", "--processes", options.processes, stop_when=stop_when)
    if stop_when():
        print(f"   the domain's held-out loss has not fallen for {PATIENCE} evaluations: enough")
    if not (out / "after.json").is_file():
        call("cmbert", "eval", out / "run", *score, out / "after.json")
    if not (out / "export").exists():
        call("cmbert", "export", out / "run", "--output", out / "export")
    closing(out, time.monotonic() - started)


def closing(out: Path, seconds: float) -> None:
    """Print and write the table of before, during and after."""
    before, after = (scores(out / f"{name}.json") for name in ("before", "after"))
    lines = ["| held-out text | before | after | change, nats |", "| --- | ---: | ---: | ---: |"]
    for name, loss in before.items():
        lines.append(f"| {name} | {loss:.4f} | {after[name]:.4f} | {after[name] - loss:+.4f} |")
    lines += ["", "In training (in its precision, the first rows of each):", ""]
    lines += [f"- step {step:,}: {', '.join(f'{x:.4f}' for x in (loss, *others))}"
              for step, loss, others in evaluations(out / "run")]  # fmt: skip
    (out / "adapted.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines[: 2 + len(before)]))
    print(f"\n   model {out}/export   table {out}/adapted.md   {seconds:.0f} s")


def scores(path: Path) -> dict[str, float]:
    """Return the held-out loss of each set of a file that `cmbert eval` wrote."""
    written = json.loads(path.read_text(encoding="utf-8"))
    found = written.get("scores", [written])
    return {score.get("data", "domain"): score["heldout_loss"] for score in found}


def num_processes() -> int:
    """Return the processes to train with: one per GPU, else one per core, at most two."""
    import torch

    return torch.cuda.device_count() or min(2, len(os.sched_getaffinity(0)))


def main() -> int:
    """Return the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="what to start from")
    parser.add_argument("--text", nargs="+", required=True, help="your text: files and folders")
    parser.add_argument("--general", nargs="+", default=[], help="other text: some is replayed, some is scored")
    parser.add_argument("--replay", type=float, default=REPLAY, help=f"share of --general's rows (default {REPLAY})")
    parser.add_argument("--tokens", type=int, help=f"to train on (default: {PASSES} passes over your text)")
    parser.add_argument("--hours", type=float, help="instead: as many tokens as this machine trains on in so long")
    parser.add_argument("--learning-rate", type=float, help="peak (default: by the model's size, docs/knobs.md)")
    parser.add_argument("--mask-rate", type=float, default=MASK_RATE, help=f"share of the tokens (default {MASK_RATE})")
    parser.add_argument("--to-the-end", action="store_true", help="do not stop when the loss falls no more")
    parser.add_argument("--processes", type=int, default=0, help="default: one per GPU, else one per core, at most two")
    parser.add_argument("--output", type=Path, default=Path("runs/adapt"), help="folder (default runs/adapt)")
    options = parser.parse_args()
    if not 0 <= options.replay < 1 or (options.tokens and options.hours):
        parser.error("--replay: from 0 to below 1; --tokens or --hours, not both")
    options.processes = options.processes or num_processes()
    try:
        adapt(options)
    except StepError as error:
        if error.args[0] == EXIT_STOPPED:
            print("   stopped; the same command goes on", file=sys.stderr)
        return int(error.args[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
