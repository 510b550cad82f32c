"""The script that builds kernels: pinned, without isolation, tried afterwards; refused in one line; with stand-ins."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.stand_ins import ROOT

FAKE_PYTHON = """#!/bin/bash
if [[ $2 == *version.cuda* ]]; then echo "$TORCH_CUDA"; exit; fi
echo "python $*" >> "$CALLS"
env | grep ^APEX_ >> "$CALLS"
exit 0
"""
FAKE_NVCC = """#!/bin/bash
echo "Cuda compilation tools, release 13.0, V13.0.88"
"""


def install_kernels(directory: Path, *names: str, cuda: str = "13.0") -> subprocess.CompletedProcess:
    for name, text in (("python", FAKE_PYTHON), ("nvcc", FAKE_NVCC)):
        (directory / name).write_text(text, encoding="utf-8")
        (directory / name).chmod(0o755)
    variables = {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "CMBERT_PYTHON": str(directory / "python"),
        "TORCH_CUDA": cuda,
        "CALLS": str(directory / "calls"),
    }
    script = ROOT / "slurm" / "install_kernels.sh"
    return subprocess.run(["bash", script, *names], env=variables, capture_output=True, text=True, check=False)


def test_kernels_are_built_without_isolation_at_pinned_versions_and_tried(tmp_path: Path) -> None:
    done = install_kernels(tmp_path, "flash-attn", "flash-attn-3", "apex")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    builds = [call for call in calls if "--no-build-isolation" in call]
    assert len(builds) == 3
    assert all("--no-deps" in call for call in builds)  # pip would take another torch
    assert "flash-attn==2.8.3" in builds[0]
    assert "flash-attention@v2.8.3#subdirectory=hopper" in builds[1]
    assert "NVIDIA/apex@25.09" in builds[2]
    assert {"APEX_CPP_EXT=1", "APEX_CUDA_EXT=1"} <= set(calls)
    assert sum("python -c from" in call for call in calls) == 3
    assert done.stdout.count("works") == 3


@pytest.mark.parametrize(
    ("names", "cuda", "message"),
    [
        ((), "13.0", "name what to build"),
        (("flash",), "13.0", "flash: unknown; choose flash-attn, flash-attn-3 or apex"),
        (("apex",), "", "this torch has no CUDA"),
        (("apex",), "12.8", "nvcc is of CUDA 13.0, torch of 12.8"),
    ],
)
def test_kernels_are_refused_in_one_line(tmp_path: Path, names: tuple[str, ...], cuda: str, message: str) -> None:
    done = install_kernels(tmp_path, *names, cuda=cuda)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "calls").exists()
