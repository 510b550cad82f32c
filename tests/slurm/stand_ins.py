"""Slurm's programs as stand-ins, and a job script run as Slurm would run it."""

import os
import shutil
import subprocess
from pathlib import Path

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


MINE = "scontrol requeue 24003\n"
