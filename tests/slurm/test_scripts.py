"""The job scripts parse, lint, hand srun the right command and decide what follows; Slurm's programs are stand-ins."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
STAGES = [ROOT / "slurm" / name for name in ("stage1.sh", "stage2.sh")]
FAKE_SCONTROL = """#!/bin/bash
# FAKE_FAIL: WORDS:TIMES:HOW:FIRST, after FIRST calls that begin with WORDS, TIMES end in an error, empty or torn
IFS=: read -r words times how first <<<"${FAKE_FAIL:-}"
if [[ -n $words && "$*" == "$words"* ]]; then
    echo "$*" >> asked
    asked=$(wc -l < asked)
    if ((asked > first && asked <= first + times)); then
        case $how in
            error) echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
            empty) exit 0 ;;
            torn) echo "   JobId=24003 JobName=large"; exit 0 ;;
        esac
    fi
fi
case "$1 $2" in
    "show hostnames") [[ $3 == 'n[1-2]' ]] && printf 'n1\\nn2\\n' || tr , '\\n' <<<"$3" ;;
    "show node") echo "   NodeAddr=127.0.0.1 NodeHostName=$3 Version=1" ;;
    "show job")
        echo "   JobState=RUNNING Reason=None Dependency=(null)"
        echo "   Requeue=${FAKE_REQUEUE:-1} Restarts=${FAKE_RESTARTS:-0} BatchFlag=1"
        echo "   RunTime=00:00:01 TimeLimit=${FAKE_LIMIT:-1-00:00:00} TimeMin=N/A"
        echo "   ReqNodeList=(null) ExcNodeList=${FAKE_EXCLUDED:-(null)}"
        ;;
    *) echo "scontrol $*" ;;
esac
"""
FAKE_SLEEP = """#!/bin/bash
echo "$1" >> slept
"""
FAKE_SRUN = """#!/bin/bash
echo "srun $*"
echo "allocator ${PYTORCH_ALLOC_CONF:-} ${PYTORCH_CUDA_ALLOC_CONF:-}"
if [[ $* != *" preflight "* ]]; then
    echo "rendezvous $MASTER_ADDR:$MASTER_PORT, $OMP_NUM_THREADS threads"
    if [[ -z ${FAKE_TRAIN:-} ]]; then
        mkdir -p "run/checkpoints/step_${FAKE_STEP:-000000018}"
        touch "run/checkpoints/step_${FAKE_STEP:-000000018}/MANIFEST.json"
    fi
    exit "${FAKE_TRAIN:-0}"
fi
if ((${FAKE_SRUN_FAILS:-0} > $(wc -l 2>/dev/null < srun_failed || echo 0))); then
    echo >> srun_failed
    echo "srun: error: Unable to confirm allocation for job 24003: Zero Bytes were transmitted or received" >&2
    exit 1
fi
result=slurm/logs/24003.preflight
mkdir $result
[[ ${FAKE_LIFE:-} == none ]] || printf '%b\\t%s\\t18\\n' "${FAKE_LIFE:-run\\t-\\t1}" "${FAKE_REACH:-18}" > $result/life
[[ -z ${FAKE_BAD:-} ]] || printf '%b\\n' "$FAKE_BAD" > $result/bad_nodes
exit "${FAKE_PREFLIGHT:-0}"
"""


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


def run_in_job(
    script: Path, directory: Path, *arguments: str, site: str | None = None, **more: str
) -> subprocess.CompletedProcess:
    """Run a script as Slurm would: from a copy elsewhere, with the job's variables and some more. site: its env.sh."""
    tools = directory / "tools"
    tools.mkdir()
    for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL), ("sleep", FAKE_SLEEP)):
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    copy = shutil.copy(script, directory / "slurm_script")
    variables = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "24003",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "16",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_SUBMIT_DIR": str(directory),
        **more,
    }
    shutil.copytree(ROOT / "slurm", directory / "slurm")
    if site is not None:
        (directory / "slurm" / "env.sh").write_text(site, encoding="utf-8")
    command = ["bash", copy, *arguments]
    return subprocess.run(command, env=variables, cwd=directory, capture_output=True, text=True, check=False)


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


MINE = "scontrol requeue 24003\n"


@pytest.mark.parametrize(
    ("variables", "code", "said", "requeued"),
    [
        ({}, 0, "restart 0: finished", False),
        ({"FAKE_STEP": "000000019"}, 0, "restart 0: finished", False),  # of an edited recipe
        ({"FAKE_STEP": "000000008"}, 75, "srun returned 0 at step 8 of 18; requeued\n", True),  # a node was lost
        ({"FAKE_STEP": "000000008", "FAKE_LIFE": "run\tstep_000000008\t3"}, 75, "3 lives in a row", False),
        ({"FAKE_STEP": "000000009", "FAKE_REACH": "9"}, 75,
         "stopped by --max-steps at step 9 of 18: not finished; not requeued\n", False),
        ({"FAKE_STEP": "000000008", "FAKE_REACH": "9"}, 75, "srun returned 0 at step 8 of 18; requeued\n", True),
        ({"FAKE_LIFE": "none"}, 2, "this folder must be the same on all nodes; not requeued", False),
        ({"FAKE_TRAIN": "2"}, 2, "a mistake to mend, see above; not requeued", False),
        ({"FAKE_TRAIN": "73"}, 73, "the run is another job's or life's now, see above; not requeued\n", False),
        ({"FAKE_TRAIN": "74"}, 74, "error or a killed process, see above, that may pass; requeued\n", True),
        ({"FAKE_TRAIN": "74", "FAKE_LIFE": "run\t-\t3"}, 74, "that may pass; not requeued: 3 lives in a row", False),
        ({"FAKE_TRAIN": "75", "FAKE_RESTARTS": "1"}, 75, "Slurm has begun a newer life of this job\n", False),
        ({"FAKE_TRAIN": "75"}, 75, "the ranks were asked to stop; requeued\n", True),
        ({"FAKE_TRAIN": "138"}, 138, "the ranks were asked to stop; requeued\n", True),  # before they listened
        ({"FAKE_TRAIN": "70", "FAKE_LIFE": "run\t-\t2"}, 70, "the ranks ended with code 70; requeued\n", True),
        ({"FAKE_TRAIN": "70", "FAKE_LIFE": "run\t-\t3"}, 70, "3 lives in a row (CMBERT_MAX_LIVES) left no", False),
        ({"FAKE_TRAIN": "70", "FAKE_LIFE": "run\told\t3"}, 70, "the ranks ended with code 70; requeued\n", True),
        ({"FAKE_TRAIN": "75", "SLURM_RESTART_COUNT": "100"}, 75, "CMBERT_MAX_RESTARTS=100 are used up", False),
        ({"FAKE_TRAIN": "75", "FAKE_REQUEUE": "0"}, 75, "not requeued: the job has Requeue=0", False),
        ({"FAKE_PREFLIGHT": "2"}, 2, "the preflight ended with code 2, see above; not requeued", False),
        ({"FAKE_PREFLIGHT": "127"}, 127, "the preflight ended with code 127, see above; not requeued", False),
        ({"FAKE_PREFLIGHT": "143"}, 143, "the preflight ended with code 143; requeued", True),
        ({"FAKE_PREFLIGHT": "69"}, 69, "the preflight ended with code 69; requeued", True),  # no node to blame
        ({"FAKE_PREFLIGHT": "69", "FAKE_LIFE": "run\t-\t3"}, 69, "3 lives in a row", False),
        ({"FAKE_PREFLIGHT": "69", "FAKE_BAD": "n2\tslow"}, 69, "unfit nodes; requeued without n2\n", True),
        ({"FAKE_PREFLIGHT": "69", "FAKE_BAD": "n2\tslow\nn4\tslow", "FAKE_EXCLUDED": "n1,n3"}, 69,
         "unfit nodes; requeued without n1,n3,n2,n4\n", True),
        ({"FAKE_PREFLIGHT": "69", "FAKE_BAD": "n2\tslow", "FAKE_EXCLUDED": "a,b,c,d,e,f,g,h"}, 69,
         "more than CMBERT_MAX_EXCLUDED=8, not requeued", False),
    ],
)  # fmt: skip
def test_what_follows_a_life(variables: dict, code: int, said: str, requeued: bool, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, **variables)
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout
    assert (MINE in done.stdout) == requeued
    excluded = re.search(r"requeued without (\S+)\n", done.stdout)
    if excluded:
        assert done.stdout.endswith(f"{MINE}scontrol update jobid=24003 ExcNodeList={excluded[1]}\n")
    is_trained = "FAKE_PREFLIGHT" not in variables and variables.get("FAKE_LIFE") != "none"
    assert (" -m cmbert train " in done.stdout) == is_trained
    assert not list(tmp_path.rglob("*.preflight"))


STOPPED = ({"FAKE_TRAIN": "75"}, "the ranks were asked to stop; requeued\n")
UNFIT = (
    {"FAKE_PREFLIGHT": "69", "FAKE_BAD": "n2\tslow", "FAKE_EXCLUDED": "n1"},
    "unfit nodes; requeued without n1,n2\n",
)
NO_CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
PAUSES = ["1", "2", "4", "8", "16", "32", "32"]  # seconds


@pytest.mark.parametrize(
    ("words", "how", "times", "ending"),
    [
        ("show job", "error", 7, STOPPED),
        ("show job", "empty", 1, STOPPED),
        ("show job", "torn", 2, STOPPED),
        ("show job", "error", 1, UNFIT),
        ("show hostnames n[1-2]", "error", 1, STOPPED),
        ("show hostnames n1,n2", "empty", 1, UNFIT),
        ("show node", "error", 1, STOPPED),
        ("show node", "torn", 1, STOPPED),
        ("requeue", "error", 1, STOPPED),
        ("update", "error", 1, UNFIT),
    ],
)
def test_slurm_is_asked_again_while_it_does_not_answer(
    words: str, how: str, times: int, ending: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    variables, said = ending
    done = run_in_job(STAGES[0], tmp_path, FAKE_FAIL=f"{words}:{times}:{how}", **variables)
    assert said in done.stdout
    assert MINE in done.stdout
    assert done.stderr == (NO_CONTROLLER * times if how == "error" else "")
    assert (tmp_path / "slept").read_text(encoding="utf-8").split() == PAUSES[:times]


@pytest.mark.parametrize("skipped", range(4))  # each question about the job: time? newer life? state? may it?
@pytest.mark.parametrize("how", ["error", "torn"])
def test_a_question_in_the_middle_is_asked_again(skipped: int, how: str, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, FAKE_FAIL=f"show job:1:{how}:{skipped}", FAKE_TRAIN="75")
    assert "the ranks were asked to stop; requeued\n" in done.stdout
    assert MINE in done.stdout
    assert (tmp_path / "slept").read_text(encoding="utf-8").split() == ["1"]


@pytest.mark.parametrize(
    ("words", "how", "code"), [("show job", "torn", 1), ("show node", "error", 1), ("requeue", "error", 75)]
)
def test_the_job_ends_when_slurm_never_answers(words: str, how: str, code: int, tmp_path: Path) -> None:
    done = run_in_job(STAGES[0], tmp_path, FAKE_FAIL=f"{words}:1000000:{how}", FAKE_TRAIN="75")
    assert done.returncode == code
    assert done.stdout.endswith("Slurm does not answer, see above; not requeued: submit again to go on\n")
    assert "no answer from Slurm in 3615 s: " in done.stderr
    assert MINE not in done.stdout


def test_progress_is_the_newest_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step_000000040", "step_000000050.damaged", ".step_000000060.3.partial"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "MANIFEST.json").touch()
    (checkpoints / "step_000000070").mkdir()  # half removed
    life = {"FAKE_TRAIN": "1", "FAKE_LIFE": "run\tstep_000000040\t3"}
    done = run_in_job(STAGES[0], tmp_path, **life)
    assert "left no checkpoint newer than step_000000040" in done.stdout
    assert MINE not in done.stdout


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
