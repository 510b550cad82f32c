"""`make demo`: the whole recipe, small, on real Chinese text; each step is a command anyone can run.

A step that is done is not done again: its command and the files it depends on are remembered in progress.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent.relative_to(Path.cwd()) if Path.cwd() in Path(__file__).parents else Path(__file__).parent
RUN = Path("runs/quickstart")
STAGE1, STAGE2 = HERE / "stage1.toml", HERE / "stage2.toml"
MAX_PROCESSES = 2
EXIT_INTERRUPTED = 130


class Step(NamedTuple):
    """One heading of the protocol."""

    name: str
    heading: str
    command: list[str]
    depends_on: tuple[Path, ...] = ()


def protocol() -> list[Step]:
    """Return the steps in order."""
    python, processes = sys.executable, num_processes()
    tools, cmbert = [python, "-m", "data_tools"], [python, "-m", "cmbert"]
    train = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    train += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "cmbert", "train"]
    train_text, heldout_text = f"{RUN}/text/train.jsonl", f"{RUN}/text/heldout.jsonl"
    preprocess = [*tools, "preprocess", "--tokenizer", f"{RUN}/tokenizer"]
    learn_bpe = [*tools, "train-tokenizer", "--vocab-size", "8192"]
    score = [*cmbert, "eval", f"{RUN}/stage2", "--data", f"{RUN}/heldout", "--by-position"]
    export = [*cmbert, "export", f"{RUN}/stage2"]
    fill_mask = [python, str(HERE / "fill_mask.py")]
    steps = (
        ("sample", "Real Chinese text", [*tools, "sample", "--output", f"{RUN}/text"]),
        ("tokenizer", "Tokenizer", [*learn_bpe, "--input", train_text, "--output", f"{RUN}/tokenizer"]),
        ("shards", "Shards with word units", [*preprocess, "--input", train_text, "--output", f"{RUN}/shards"]),
        ("heldout", "Held-out shards", [*preprocess, "--input", heldout_text, "--output", f"{RUN}/heldout"]),
        ("verify", "Verify the shards", [*tools, "verify", f"{RUN}/shards"]),
        ("plan", "Plan of stage 1", [*cmbert, "plan", str(STAGE1), "--gpus", str(processes)]),
        ("stage1", f"Stage 1: rows of 256 tokens, {processes} ZeRO processes", [*train, str(STAGE1)]),
        ("stage2", "Stage 2: rows of 1,024 tokens, packed anew, from stage 1", [*train, str(STAGE2)]),
        ("eval", "Held-out pseudo-perplexity by position", [*score, "--output", f"{RUN}/eval.json"]),
        ("export", "Export, checked against transformers", [*export, "--output", f"{RUN}/export"]),
        ("fill-mask", "Fill-mask through transformers", [*fill_mask, f"{RUN}/export", f"{RUN}/fill_mask.json"]),
        ("report", "Report", [*cmbert, "report", str(RUN), "--output", f"{RUN}/report.html"]),
    )  # fmt: skip
    first_recipe = [name for name, _, _ in steps].index("plan")
    return [
        Step(name, heading, command, (STAGE1, STAGE2) if index >= first_recipe else ())
        for index, (name, heading, command) in enumerate(steps)
    ]


def num_processes() -> int:
    """Return the processes to train with: one per GPU if there are GPUs, else one per core; at most two."""
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return min(MAX_PROCESSES, available)


def fingerprint(step: Step, before: str) -> str:
    """Identify a step by its command, the files it depends on and the step before it."""
    digest = hashlib.blake2b(before.encode(), digest_size=16)
    digest.update("\0".join(step.command[1:]).encode())
    for path in step.depends_on:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Run what is not done yet; return the exit code of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help=f"remove {RUN} and start over")
    if parser.parse_args().fresh:
        shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True, exist_ok=True)
    progress_file = RUN / "progress.json"
    done = json.loads(progress_file.read_text(encoding="utf-8")) if progress_file.is_file() else {}
    steps, identity, num_run = protocol(), "", 0
    for number, step in enumerate(steps, start=1):
        identity = fingerprint(step, identity)
        if step.name in done:
            if done[step.name]["identity"] != identity:
                print(
                    f"The recipe changed since `{step.name}` was run; start over with: make demo FRESH=1",
                    file=sys.stderr,
                )
                return 2
            continue
        if step.name == "report":
            write_summary(done)  # the page shows it
        print(f"\n== {number}/{len(steps)} {step.heading}\n   $ {shown(step.command)}", flush=True)
        started = time.monotonic()
        code = run(step.command)
        if code != 0:
            print(f"\n`{step.name}` ended with exit code {code}; `make demo` continues from here.", file=sys.stderr)
            return code
        done[step.name] = {"identity": identity, "seconds": round(time.monotonic() - started, 1)}
        write_json(progress_file, done)
        num_run += 1
    write_summary(done)
    closing(num_run, done)
    return 0


def shown(command: list[str]) -> str:
    """Return a command as a person would type it."""
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join(words).replace("python -m data_tools", "data_tools").replace("python -m cmbert", "cmbert")


def run(command: list[str]) -> int:
    """Run one command; on Ctrl-C let it save and leave."""
    processes = num_processes()
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}
    child = subprocess.Popen(command, env=environment)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal sent it the same signal
        return EXIT_INTERRUPTED


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_summary(done: dict) -> None:
    """Write runs/quickstart/summary.json: the figures of the run and the seconds of each step."""
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
    print(f"\n== {'Done' if num_run else 'Already done: start over with make demo FRESH=1'} ({total:.0f} s in all)")
    figures = "held-out loss {heldout_loss:.3f} nats, unigram {unigram_loss:.3f}: gap {gap_nats:.3f}"
    print("   " + figures.format(**summary))
    print(f"   model  {RUN}/export       report  {RUN}/report.html       figures  {RUN}/summary.json")


if __name__ == "__main__":
    sys.exit(main())
