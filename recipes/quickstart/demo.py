"""`make demo`: the whole recipe, small, on real Chinese text; each step is a command anyone can run.

A step that is done is not done again: its command and the recipes it depends on are remembered in progress.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

HERE = Path(os.path.relpath(Path(__file__).parent))
EXAMPLES = Path(os.path.relpath(Path(__file__).absolute().parents[2] / "examples"))
RUN = Path("runs/quickstart")
STAGE1, STAGE2 = HERE / "stage1.toml", HERE / "stage2.toml"
MAX_PROCESSES = 2
EXIT_USER_ERROR = 2


class Step(NamedTuple):
    """One heading of the protocol."""

    name: str
    heading: str
    command: list[str]


def protocol(sample_options: list[str]) -> list[Step]:
    """Return the steps in order."""
    python, processes = sys.executable, str(num_processes())
    data_tools, cmbert = [python, "-m", "data_tools"], [python, "-m", "cmbert"]
    stage1, stage2 = ([*cmbert, "train", str(path), "--processes", processes] for path in (STAGE1, STAGE2))
    first, second = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (STAGE1, STAGE2))
    vocab_size = str(first["model"]["vocab_size"])
    rows = [f"rows of {recipe['data']['context_tokens']:,} tokens" for recipe in (first, second)]

    train_text, heldout_text = f"{RUN}/text/train.jsonl", f"{RUN}/text/heldout.jsonl"
    learn_bpe = [*data_tools, "train-tokenizer", "--vocab-size", vocab_size]
    preprocess = [*data_tools, "preprocess", "--tokenizer", f"{RUN}/tokenizer"]
    score = [*cmbert, "eval", f"{RUN}/stage2", "--data", f"{RUN}/heldout", "--by-position"]
    export = [*cmbert, "export", f"{RUN}/stage2"]
    fill_mask = [python, str(EXAMPLES / "fill_mask.py"), f"{RUN}/export"]
    return [
        Step("sample", "Real Chinese text", [*data_tools, "sample", *sample_options, "--output", f"{RUN}/text"]),
        Step("tokenizer", "Tokenizer", [*learn_bpe, "--input", train_text, "--output", f"{RUN}/tokenizer"]),
        Step("shards", "Shards with word units", [*preprocess, "--input", train_text, "--output", f"{RUN}/shards"]),
        Step("heldout", "Held-out shards", [*preprocess, "--input", heldout_text, "--output", f"{RUN}/heldout"]),
        Step("verify", "Verify the shards", [*data_tools, "verify", f"{RUN}/shards"]),
        Step("plan", "Plan of stage 1", [*cmbert, "plan", str(STAGE1), "--gpus", processes]),
        Step("stage1", f"Stage 1: {rows[0]}, {processes} ZeRO processes", stage1),
        Step("stage2", f"Stage 2: {rows[1]}, packed anew from the same shards", stage2),
        Step("eval", "Held-out pseudo-perplexity by position", [*score, "--output", f"{RUN}/eval.json"]),
        Step("export", "Export, compared with transformers", [*export, "--output", f"{RUN}/export"]),
        Step("fill_mask", "Fill-mask through transformers", [*fill_mask, f"{RUN}/fill_mask.json"]),
        Step("report", "Report", [*cmbert, "report", str(RUN), "--output", f"{RUN}/report.html"]),
    ]


def num_processes() -> int:
    """Return the processes to train with: one per GPU if there are GPUs, else one per core; at most two."""
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return min(MAX_PROCESSES, available)


def main() -> int:
    """Run what is not done yet; return the exit code of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help=f"remove {RUN} and start over")
    parser.add_argument("--size", metavar="BYTES", help="at most this much text, UTF-8 (default: all there is)")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True, exist_ok=True)
    progress_file = RUN / "progress.json"
    done = json.loads(progress_file.read_text(encoding="utf-8")) if progress_file.is_file() else {}
    steps = protocol(["--size", options.size] if options.size else [])
    identity, num_run = "", 0
    for number, step in enumerate(steps, start=1):
        identity = identify(step, identity)
        if step.name in done and done[step.name]["identity"] != identity:
            print(f"The recipe changed since `{step.name}`; start over with: make demo FRESH=1", file=sys.stderr)
            return EXIT_USER_ERROR
        if step.name in done:
            continue
        if step.name == "report":
            write_summary(done)  # the page shows it
        print(f"\n== {number}/{len(steps)} {step.heading}\n   $ {shown(step.command)}", flush=True)
        started = time.monotonic()
        code = run(step.command)
        if code != 0:
            print(f"\n`{step.name}` ended with exit code {code}; make demo continues from here.", file=sys.stderr)
            return code
        done[step.name] = {"identity": identity, "seconds": round(time.monotonic() - started, 1)}
        write_json(progress_file, done)
        num_run += 1
    write_summary(done)
    closing(num_run, done)
    return 0


def identify(step: Step, before: str) -> str:
    """Fingerprint a step: its command, the recipes that the command names, and the step before it."""
    words = [word for word in step.command if word != sys.executable]
    recipes = [STAGE1.read_bytes(), STAGE2.read_bytes()] if str(STAGE2) in words else []
    recipes += [STAGE1.read_bytes()] if str(STAGE1) in words else []
    return hashlib.blake2b(b"\0".join([before.encode(), *map(str.encode, words), *recipes]), digest_size=16).hexdigest()


def shown(command: list[str]) -> str:
    """Return a command as a person would type it."""
    text = " ".join("python" if word == sys.executable else word for word in command)
    return text.replace("python -m data_tools", "data_tools").replace("python -m cmbert", "cmbert")


def run(command: list[str]) -> int:
    """Run one command; on Ctrl-C, which the terminal sends to it too, let it save and leave."""
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            print("\nstopping ...", file=sys.stderr)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_summary(done: dict) -> None:
    """Write summary.json: the figures of the run and the seconds of each step."""
    score = json.loads((RUN / "eval.json").read_text(encoding="utf-8"))
    keys = ("heldout_loss", "unigram_loss", "masked_accuracy", "pseudo_perplexity", "masked_tokens")
    summary = {key: score[key] for key in keys}
    summary["gap_nats"] = score["unigram_loss"] - score["heldout_loss"]
    summary["seconds"] = {name: entry["seconds"] for name, entry in done.items()}
    summary["export"] = str(RUN / "export")
    write_json(RUN / "summary.json", summary)


def closing(num_run: int, done: dict) -> None:
    """Say what was reached and where to look."""
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    total = sum(entry["seconds"] for entry in done.values())
    print(f"\n== {'Done' if num_run else 'Already done; make demo FRESH=1 starts over'} ({total:.0f} s in all)")
    figures = "held-out loss {heldout_loss:.3f} nats, unigram {unigram_loss:.3f}: gap {gap_nats:.3f}"
    print("   " + figures.format(**summary))
    print(f"   model {RUN}/export   report {RUN}/report.html   figures {RUN}/summary.json")


if __name__ == "__main__":
    sys.exit(main())
