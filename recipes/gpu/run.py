"""`make gpu`: everything that only a GPU can tell, in nine minutes, one process a part; see README.md.

Writes DIR/report.json, to which every part is added as soon as it ends, and DIR/log.txt. Needs no installed cmbert.
Exit code 0: every part asked for gave its figures; 1: not all, and the output says why; 2: a user's mistake.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from figures import BEGIN, END, PARTS, Part, markdown, replace_table, summary

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORT, LOG = "report.json", "log.txt"
OUTPUT, DRY_OUTPUT, DOCUMENT = Path("runs/gpu"), Path("runs/gpu-dry-run"), Path("docs/performance.md")
EXIT_NOT_ALL, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 130
PROBE = "import torch; print(torch.cuda.is_available())"


class UserError(Exception):
    """Something that the user can mend."""


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line. Raises UserError."""
    parser = argparse.ArgumentParser(prog="gpu", description="Measure on one GPU what only a GPU can tell.")
    names = [part.name for part in PARTS]
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="for everything asked for (default 9)")
    parser.add_argument("--only", action="append", choices=names, metavar="PART", help="one part; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="all of it at a tiny size, on a CPU, too")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default {OUTPUT}; {DRY_OUTPUT} for a dry run")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install these first, for this run alone")
    parser.add_argument("--merge", action="store_true", help="only add what a killed run left to report.json")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=DOCUMENT, metavar="FILE",
        help=f"only write the table of report.json into FILE (default {DOCUMENT})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        raise UserError(f"--minutes {options.minutes:g}: must be more than 0")
    options.output = (options.output or (DRY_OUTPUT if options.dry_run else OUTPUT)).resolve()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; return the exit code."""
    try:
        options = read_options(arguments)
        if options.table:
            write_table(options.output / REPORT, options.table)
            return 0
        options.output.mkdir(parents=True, exist_ok=True)
        if options.merge:
            report = merge(options.output)
            print(summary(report, list(report["parts"])))
            return 0
        with tempfile.TemporaryDirectory(prefix="cmbert-gpu-") as scratch:
            return run_parts(options, Path(scratch))
    except UserError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("gpu: interrupted; --merge adds what the last part wrote to the report", file=sys.stderr)
        return EXIT_INTERRUPTED


def run_parts(options: argparse.Namespace, scratch: Path) -> int:
    """Run the parts asked for, one after another; print a line for each, and a table at the end."""
    asked = [part for part in PARTS if options.only is None or part.name in options.only]
    environment = make_environment(options, scratch)
    lack = "" if options.dry_run else what_is_missing(environment)
    deadline = time.monotonic() + 60 * options.minutes
    is_complete = True
    with open(options.output / LOG, "ab") as log:
        for number, part in enumerate(asked):
            later = sum(other.seconds for other in asked[number:])
            limit = (deadline - time.monotonic()) * part.seconds / later  # what a part leaves goes to those after it
            entry = run_part(part, options, environment, limit, log) if not lack else nothing(part, lack)
            write_json(options.output / f"{part.name}.json", entry)
            report = merge(options.output)
            is_complete &= entry["done"] and not entry["missing"]
            print(f"{PARTS.index(part)} {part.name:<12}{entry['seconds']:>7.1f} s  {outcome(entry)}", flush=True)
    print(summary(report, [part.name for part in asked]))
    print(f"{options.output / REPORT}; the parts' own output is in {options.output / LOG}")
    return 0 if is_complete else EXIT_NOT_ALL


def make_environment(options: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Return the parts' environment, the wheels installed into `scratch`. Raises UserError."""
    paths = [str(ROOT)]
    if options.wheels is not None:
        wheels = sorted(options.wheels.glob("*.whl"))
        if not wheels:
            raise UserError(f"--wheels {options.wheels}: no wheels there; recipes/gpu/README.md says how to make them")
        target = scratch / "site"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
        done = subprocess.run([*install, *map(str, wheels)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(f"--wheels {options.wheels}: pip refuses: {said[-1] if said else done.returncode}")
        paths.insert(0, str(target))
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    places = {"TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    for folder in places.values():
        (scratch / folder).mkdir()
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    found |= {name: str(scratch / folder) for name, folder in places.items()}
    if options.dry_run:
        # Compiling on a CPU takes minutes, and threads only hurt what is tiny.
        found |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return found


def what_is_missing(environment: dict[str, str]) -> str:
    """Say why no part can run here, "" if all may try."""
    found = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return f"torch cannot be imported ({found.stderr.strip().splitlines()[-1]})"
    return "" if found.stdout.strip().endswith("True") else "no CUDA device"


def run_part(
    part: Part, options: argparse.Namespace, environment: dict[str, str], limit: float, log: IO[bytes]
) -> dict[str, Any]:
    """Run one part for at most `limit` seconds; return what it wrote, with how it ended."""
    file = options.output / f"{part.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / f"{part.name}.py"), "--output", str(file)]
    command += ["--seconds", f"{limit:.1f}", *(["--dry-run"] if options.dry_run else [])]
    started = time.monotonic()
    code = run_limited(command, environment, limit, log)
    entry = read_entry(file, part)
    entry |= {"dry_run": options.dry_run, "seconds": round(time.monotonic() - started, 1)}
    if code is None:
        entry |= {"done": False, "reason": f"out of time after {limit:.0f} s"}
    elif code != 0:
        entry |= {"done": False, "reason": f"ended with exit code {code}, see {LOG}"}
    return entry


def run_limited(command: list[str], environment: dict[str, str], limit: float, log: IO[bytes]) -> int | None:
    """Run a command and return its exit code, None if it ran out of time. Nothing that it started is left behind."""
    log.write(f"\n== {' '.join(command)}\n".encode())
    log.flush()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=max(limit, 0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def nothing(part: Part, reason: str) -> dict[str, Any]:
    """Return the entry of a part that gave nothing."""
    return {
        "part": part.name, "dry_run": False, "done": False, "seconds": 0.0, "reason": reason,
        "machine": {}, "figures": {}, "details": {}, "missing": {}, "gpu_only": [],
    }  # fmt: skip


def read_entry(file: Path, part: Part) -> dict[str, Any]:
    """Return what a part has written so far."""
    written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return nothing(part, "") | written


def outcome(entry: dict[str, Any]) -> str:
    """Say in one line what came of a part."""
    said = [f"{len(entry['figures'])} figures"]
    said += [entry["reason"]] if entry["reason"] else []
    said += [f"not measured: {name}: {why}" for name, why in entry["missing"].items()]
    said += [f"needs a GPU: {', '.join(entry['gpu_only'])}"] if entry["gpu_only"] else []
    return "; ".join(said)


def merge(output: Path) -> dict[str, Any]:
    """Move the parts' files into report.json and return it. A part without figures never replaces one that has some."""
    path = output / REPORT
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"parts": {}}
    for part in PARTS:
        file = output / f"{part.name}.json"
        if file.is_file():
            entry, before = read_entry(file, part), report["parts"].get(part.name)
            if entry["figures"] or not (before and before["figures"]):
                report["parts"][part.name] = entry
    write_json(path, report)
    for part in PARTS:
        (output / f"{part.name}.json").unlink(missing_ok=True)
    return report


def write_table(report: Path, document: Path) -> None:
    """Put the table of a report into a document. Raises UserError."""
    if not report.is_file():
        raise UserError(f"{report}: no such report; run make gpu first, or name its folder with --output")
    if not document.is_file():
        raise UserError(f"--table {document}: no such file")
    table = markdown(json.loads(report.read_text(encoding="utf-8")))
    text = replace_table(document.read_text(encoding="utf-8"), table)
    if text is None:
        raise UserError(f"--table {document}: it must have the lines {BEGIN} and {END} once, in this order")
    aside = document.with_suffix(".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, document)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
