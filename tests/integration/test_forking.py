"""A training without a cold start is, bit for bit, one that Python started; its processes are as real."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.cluster.preemption import EXIT_STOPPED
from tests import forking
from tests.integration.launching import children, deepspeed_file, settings, start, trace, train

POPENS = {"cold": subprocess.Popen, "forked": forking.Popen}
FACTS = """import json, numpy, os, random, signal, sys, threading, torch
facts = {
    "argv": sys.argv[1:],
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "path": sys.path[0],
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
    "torch": [torch.is_grad_enabled(), str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()],
    "random": [torch.rand(1).item(), numpy.random.random(), random.random()],
    "signals": {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGPIPE")},
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "is_session": os.getsid(0) == os.getpid(),
    "is_child": os.getppid() == int(os.environ["STARTER"]),
}
print(json.dumps(facts))
sys.exit(3)
"""


@pytest.mark.parametrize(("stage", "bf16", "ranks"), [(1, False, 1), (2, True, 2), (3, False, 2)])
def test_the_same_bits(recipe_file: Path, tmp_path: Path, stage: int, bf16: bool, ranks: int) -> None:
    setting = settings(deepspeed_file(tmp_path, stage, bf16))
    for name, popen in POPENS.items():
        train(recipe_file, *setting, "--set", f"run_directory={tmp_path}/{name}", ranks=ranks, popen=popen)
    assert trace(tmp_path / "forked") == trace(tmp_path / "cold")
    weights, ledgers = ({name: [path.read_bytes() for path in sorted((tmp_path / name).glob(pattern))]
                         for name in POPENS} for pattern in ("checkpoints/step_*/*.pt", "ledger/*"))  # fmt: skip
    assert len(weights["cold"]) >= 4 * ranks
    assert weights["forked"] == weights["cold"]
    assert ledgers["forked"] == ledgers["cold"]


@pytest.mark.parametrize("is_session", [False, True])
def test_a_forked_process_finds_what_a_cold_one_does(tmp_path: Path, is_session: bool) -> None:
    script = tmp_path / "facts.py"
    script.write_text(FACTS, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STARTER": str(os.getpid()), "WHAT": "是"}
    for command in (["-c", FACTS], [str(script)], ["-u", str(script)]):
        found = []
        for popen in (*POPENS.values(), forking.Popen):
            process = popen(
                [sys.executable, *command, "一", "--two"], cwd=tmp_path, env=environment, text=True,
                stdout=subprocess.PIPE, start_new_session=is_session,
            )  # fmt: skip
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 3
            found.append(json.loads(output))
        numbers = [number for facts in found for number in facts.pop("random")]
        assert len(set(numbers)) == len(numbers)  # nobody has another's chance
        assert found[0] == found[1] == found[2]
        assert found[1]["is_child"]


def test_a_forked_process_is_as_deaf_to_interrupts_as_its_starter() -> None:
    code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, is_deaf in ((signal.SIG_IGN, 1), (signal.default_int_handler, 0)):
            signal.signal(signal.SIGINT, handler)
            for popen in POPENS.values():
                assert popen([sys.executable, "-c", code], env=environment).wait(timeout=60) == is_deaf
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_not_forked() -> None:
    environment = {"OMP_NUM_THREADS": "1"}
    assert forking.is_forked([sys.executable, "-m", "cmbert"], environment)
    for command in ([sys.executable, "-I", "-c", "0"], ["python3", "-m", "cmbert"], f"{sys.executable} -m cmbert"):
        assert not forking.is_forked(command, environment)
    assert not forking.is_forked([sys.executable, "-m", "cmbert"], {"OMP_NUM_THREADS": "2"})


def test_signals_and_kills_are_real(recipe_file: Path, tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, EXIT_STOPPED), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(recipe_file, "--set", f"run_directory={tmp_path}/{number}", fault="pause:6:0")
        assert process.stdout is not None
        while "paused in step 6" not in process.stdout.readline():
            assert process.poll() is None
        assert process.pid in children(os.getpid())
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
    output = train(recipe_file, ranks=2, fault="kill:6:1", code=1)
    assert re.search(r"rank +: 1 .*\n.*exitcode +: -9 \(pid: \d+\)", output), output
