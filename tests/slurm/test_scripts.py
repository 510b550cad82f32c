"""The job scripts parse, lint and hand srun the right command; Slurm's programs are stand-ins."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.slurm.stand_ins import ROOT, SCRIPTS, STAGES, run_in_job


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_bash_parses_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_old_bash_takes_empty_arrays(script: Path) -> None:
    """Bash 4.2, which CentOS 7 has, says of an empty X that "${X[@]}" is unbound; + or :- guard it."""
    assert not re.findall(r'(?<!\+)"\$\{\w+\[@\]\}"|\$\{\w+\[\*\]\}', script.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_shellcheck_finds_nothing(script: Path, shellcheck: str) -> None:
    found = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


@pytest.mark.parametrize("script", STAGES, ids=name_of)
def test_headers_save_requeue_and_append(script: Path) -> None:
    headers = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", script.read_text(encoding="utf-8"), flags=re.M))
    assert (headers["signal"], headers["requeue"], headers["open-mode"]) == ("USR1@120", "", "append")
    assert headers["ntasks-per-node"] == headers["gpus-per-node"]  # one task per GPU
    assert (headers["exclusive"], headers["mem"]) == ("", "0")  # a cluster's DefMemPerCPU is small
    assert "gpus-per-task" not in headers  # every task sees all GPUs of its node and picks its own


@pytest.mark.parametrize("failures", range(4))
def test_an_srun_that_began_nothing_is_started_again(failures: int, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, FAKE_SRUN_FAILS=str(failures))
    assert done.returncode == (failures == 3)
    assert done.stdout.count("the preflight did not begin; once more in") == min(failures, 2)
    assert ("finished" in done.stdout) == (failures < 3)
    assert ("the preflight ended with code 1, see above; not requeued" in done.stdout) == (failures == 3)


@pytest.mark.parametrize("script", STAGES, ids=name_of)
def test_srun_starts_one_trainer_per_task(script: Path, tmp_path: Path) -> None:
    done = run_in_job(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        rf"^srun --cpus-per-task=6 .* -m cmbert preflight recipes/large/{script.stem}\.toml --result \S+ --nodes n1,n2",
        done.stdout, re.M,
    )  # fmt: skip
    assert re.search(
        rf"^srun --cpus-per-task=6 .* --wait=8 .*-m cmbert train recipes/large/{script.stem}\.toml$", done.stdout, re.M
    )
    assert "rendezvous 127.0.0.1:20003, 6 threads" in done.stdout
    assert (ROOT / "recipes" / "large" / f"{script.stem}.toml").is_file()


@pytest.mark.parametrize(
    ("chosen", "allocator"),
    [
        ({}, "expandable_segments:True "),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native "),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, " backend:native"),  # torch would mix the two
    ],
)
def test_the_allocator_is_set_unless_the_user_has_done_so(chosen: dict, allocator: str, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, **chosen)
    assert set(re.findall("^allocator (.*)$", done.stdout, re.M)) == {allocator}


def test_recipe_and_options_are_passed_on(tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, "recipes/base/stage1.toml", "--set", "train.seed=1")
    assert "-m cmbert train recipes/base/stage1.toml --set train.seed=1\n" in done.stdout


@pytest.mark.parametrize("script", STAGES, ids=name_of)
def test_options_may_stand_without_a_recipe(script: Path, tmp_path: Path) -> None:
    done = run_in_job(script, tmp_path, "--set", "train.seed=1")
    assert f"-m cmbert train recipes/large/{script.stem}.toml --set train.seed=1\n" in done.stdout


def test_every_line_of_the_sites_facts_is_optional(tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, site="")
    assert done.returncode == 0, done.stderr
    assert " .venv/bin/python -u -m cmbert train recipes/large/stage1.toml\n" in done.stdout


@pytest.mark.parametrize(
    ("limit", "is_short"),
    [("1-00:00:00", False), ("00:03:01", False), ("00:03:00", True), ("00:02:00", True), ("UNLIMITED", False)],
)
def test_a_limit_that_the_signal_comes_before_is_warned_of(limit: str, is_short: bool, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, FAKE_LIMIT=limit)
    assert (f"warning: --time is {limit}, and USR1 comes 120 to 180 s before its end" in done.stdout) == is_short
    assert done.returncode == 0


def test_a_port_that_another_program_has_is_passed_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 20_000 + 24_003 % 12_000)):
        done = run_in_job(STAGES[0], tmp_path)
    assert "port 20003 is another program's\n" in done.stdout
    assert "rendezvous 127.0.0.1:20004, 6 threads" in done.stdout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("5:30", 330), ("1:02:03", 3723), ("2-03", 183_600), ("1-00:00:00", 86_400), ("2-01:30", 178_200),
     ("08:09", 489), ("UNLIMITED", 3_153_600_000), ("infinite", 3_153_600_000)],
)  # fmt: skip
def test_times_as_slurm_writes_them(text: str, seconds: int) -> None:
    command = ["bash", "-c", f"source slurm/limits.sh; seconds_of {text}"]
    assert int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout) == seconds


@pytest.mark.parametrize("script", STAGES, ids=name_of)
def test_outside_a_job_it_says_how_to_submit(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"submit it: sbatch slurm/{script.name}" in done.stderr


@pytest.mark.parametrize("command", ["clean", "preprocess"])
def test_a_job_of_an_array_does_the_share_of_its_number(command: str, tmp_path: Path) -> None:
    words = ("--input", "raw/a", "--output", "text/a")
    array = {"SLURM_ARRAY_JOB_ID": "24001", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5"}
    script = ROOT / "slurm" / f"{command}.sh"
    done = run_in_job(script, tmp_path, *words, **array, SLURM_ARRAY_TASK_COUNT="3")
    assert done.returncode == 0, done.stderr
    asked = f"-u -m data_tools {command} --workers 6 --input raw/a --output text/a"
    assert f" {asked} --num-tasks 3 --task-index 2\n" in done.stdout


@pytest.mark.parametrize("command", ["clean", "preprocess"])
def test_a_job_without_an_array_does_what_is_left(command: str, tmp_path: Path) -> None:
    script = ROOT / "slurm" / f"{command}.sh"
    done = run_in_job(script, tmp_path, "--input", "raw/a", "--workers", "2")
    assert f" -u -m data_tools {command} --workers 6 --input raw/a --workers 2\n" in done.stdout  # the last one counts
    assert "--num-tasks" not in done.stdout
