"""The launchers of docs/launching.md start two ranks of one run, with the same losses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cmbert.cluster.distributed import FIRST_PORT
from tests.integration.launching import trace

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", "{port}", "-m", "cmbert"],
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", "{port}", "--module", "cmbert"],
    "mpi": ["mpiexec", "-n", "2", "python", "-m", "cmbert"],
}


def test_the_launchers_agree(recipe_file: Path, tmp_path: Path) -> None:
    traces = {}
    for number, (name, words) in enumerate(LAUNCHERS.items()):
        if not (BIN / words[0]).is_file():
            pytest.skip(f"no {words[0]} beside Python")
        port = str(FIRST_PORT + (os.getpid() + number) % 10_000)
        command = [str(BIN / words[0]), *(word.format(port=port) for word in words[1:])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port, "PATH": f"{BIN}:{os.environ['PATH']}"}
        arguments = ["train", str(recipe_file), "--max-steps", "3", "--set", f"run_directory={tmp_path}/{name}"]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"
        assert len(re.findall("starting on 2 x cpu", done.stdout)) == 1
        traces[name] = trace(tmp_path / name)
    assert traces["deepspeed"] == traces["torchrun"] == traces["mpi"]
