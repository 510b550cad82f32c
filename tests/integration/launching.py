"""Start `cmbert train` as a user does, and read what it left."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmbert.runs.metrics import read_metrics
from tests import forking

# A trainer under a limit on the size of files.
LIMITED = """import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
runpy.run_module("cmbert", run_name="__main__", alter_sys=True)"""
REPEATED = ("loss", "grad_norm", "accuracy", "learning_rate", "mask_rate", "masked_tokens", "real_tokens", "tokens")


def torchrun(ranks: int) -> list[str]:
    """Return Python's options that start what follows once per rank, on a port of its own."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *rendezvous]


def start(
    recipe: Path,
    *arguments: str,
    ranks: int = 1,
    fault: str = "",
    limit_file_bytes: int = 0,
    environment: Mapping[str, str] | None = None,
    popen: type[subprocess.Popen] = forking.Popen,
) -> subprocess.Popen:
    """Start a training without a cold start, unless `popen` is subprocess.Popen.

    fault: kind:step:rank of faulty_train.py. limit_file_bytes: writing more fails, as on a full disk.
    environment: beside this process's own.
    """
    launcher = torchrun(ranks) if ranks > 1 else []
    program = [str(Path(__file__).with_name("faulty_train.py"))] if fault else ["-m", "cmbert", "train"]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path.cwd()),
        "FAULT": fault,
        **(environment or {}),
    }
    if limit_file_bytes:
        program = ["-c", LIMITED.format(limit_file_bytes), "train"]
    return popen(
        [sys.executable, *launcher, *program, str(recipe), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    )


def train(recipe: Path, *arguments: str, code: int = 0, **how: Any) -> str:
    """Train to the end, as `start` does; return what was said."""
    process = start(recipe, *arguments, **how)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def wait_for_output(process: subprocess.Popen, text: str) -> None:
    """Read what a process says until a line has `text`."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}:\n{''.join(said)}")


def settings(*values: str) -> tuple[str, ...]:
    """Return --set options."""
    return tuple(word for value in values for word in ("--set", value))


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run)]


def trace(run: Path) -> list[dict]:
    records = read_metrics(run)
    assert [record["step"] for record in records] == list(range(len(records)))
    return [{key: record[key] for key in REPEATED} for record in records]


def deepspeed_file(directory: Path, stage: int, bf16: bool = False) -> str:
    path = directory / f"zero{stage}{'_bf16' if bf16 else ''}.json"
    precision = {"bf16": {"enabled": True}} if bf16 else {}
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **precision}), encoding="utf-8")
    return f"train.deepspeed={path}"


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]
