"""submit_all.sh asks Slurm about each kind of job before it submits one; Slurm's programs are stand-ins."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAIN = """#!/bin/bash
root=${FAKE_ROOT:-runs} name=${FAKE_NAME:-a}
printf 'root\\t%s\\n' "$root"
printf "${FAKE_TEXTS:-tokenizer\\ttokenizer\\tthere\\nagainst\\ttext/heldout\\n}"
printf 'shards\\t%s\\tshards/a\\ttext/a\\tmissing\\nheldout\\tshards/a\\n' "$name"
printf 'stage1\\tstage1.toml\\truns/stage1\\tnew\\nstage2\\tstage2.toml\\truns/stage2\\tnew\\n'
"""
SBATCH = """#!/bin/bash
echo "sbatch $*" >> calls
if [[ -n ${FAKE_REFUSES:-} && $* == *--test-only*$FAKE_REFUSES* ]]; then
    echo "allocation failure: $FAKE_SAYS" >&2
    exit 1
fi
[[ $* == *--test-only* ]] || wc -l < calls
"""
SINFO = """#!/bin/bash
case "$*" in
    *--format=%P*) printf 'other\\nmain*\\n' ;;
    *--partition=main*) echo "${FAKE_LIMIT:-infinite}" ;;
    *) exit 1 ;;
esac
"""
SCONTROL = """#!/bin/bash
if [[ $1 == update ]]; then
    echo "${FAKE_UPDATE:-} for job 1014" >&2
    exit 1
fi
echo "MaxArraySize            = 1001"
"""
KINDS = ["--array=0-3 slurm/preprocess.sh", "slurm/preprocess.sh", "slurm/run.sh", "slurm/stage1.sh", "slurm/stage2.sh",
         "slurm/evaluate.sh"]  # fmt: skip


SQUEUE = """#!/bin/bash
[[ -z ${FAKE_QUEUED:-} ]] || echo "$FAKE_QUEUED None"
"""


def submit_all(
    directory: Path, options: str = "", clean: str = "", **variables: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Return how it ended, and the calls of sbatch. options: what env.sh says for every job; clean: for `clean`."""
    tools = directory / "tools"
    tools.mkdir(exist_ok=True)
    programs = {"python": CHAIN, "sbatch": SBATCH, "sinfo": SINFO, "scontrol": SCONTROL, "squeue": SQUEUE}
    for name, text in programs.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    shutil.copytree(ROOT / "slurm", directory / "slurm", dirs_exist_ok=True)
    site = directory / "slurm" / "env.sh"
    said = re.sub(r"(?m)^CMBERT_CLEAN_OPTIONS=\(\)", f"CMBERT_CLEAN_OPTIONS=({clean})", site.read_text("utf-8"))
    site.write_text(re.sub(r"(?m)^(CMBERT_\w+_OPTIONS)=\(\)", rf"\1=({options})", said), "utf-8")
    (directory / "calls").unlink(missing_ok=True)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "CMBERT_PYTHON": "python", **variables}
    done = subprocess.run(
        ["bash", "slurm/submit_all.sh", "recipes", "text", "4"], env=environment, cwd=directory, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    calls = directory / "calls"
    return done, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_every_kind_is_tried_once_before_the_first_job(tmp_path: Path) -> None:
    done, calls = submit_all(tmp_path)
    assert done.returncode == 0, done.stderr
    tried = [call for call in calls if "--test-only" in call]
    assert calls[: len(KINDS)] == tried
    assert all(call.startswith(f"sbatch --test-only {kind} ") for call, kind in zip(tried, KINDS, strict=True))
    assert len(calls) - len(tried) == len(done.stdout.splitlines()) == 9


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FAKE_REFUSES": "--array", "FAKE_SAYS": "Invalid job array specification"},
         "slurm/preprocess.sh: allocation failure: Invalid job array specification; nothing is submitted; MaxArraySize "
         "here is 1001: give a smaller JOBS: slurm/submit_all.sh recipes text N"),
        ({"FAKE_REFUSES": "stage2.sh", "FAKE_SAYS": "Requested node configuration is not available"},
         "stage2.sh: allocation failure: Requested node configuration is not available; nothing is submitted; set "
         "CMBERT_STAGE_OPTIONS in slurm/env.sh to what your nodes have"),
        ({"FAKE_REFUSES": "run.sh", "FAKE_SAYS": "Invalid account"}, "an option in CMBERT_CPU_OPTIONS"),
        ({"FAKE_LIMIT": "12:00:00"}, "--time=24:00:00, and partition main gives 12:00:00; nothing is submitted; set "
         "--time=12:00:00 in CMBERT_CPU_OPTIONS"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_is_one_line_and_nothing_is_submitted(variables: dict, message: str, tmp_path: Path) -> None:
    done, calls = submit_all(tmp_path, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert all("--test-only" in call for call in calls)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", ["--time=1:00:00", "--time 1:00:00", "-t 1:00:00", "-t1:00:00"])
def test_an_option_counts_however_it_is_spelled(options: str, tmp_path: Path) -> None:
    done, _ = submit_all(tmp_path, options, FAKE_LIMIT="12:00:00")
    assert done.returncode == 0, done.stderr


def test_the_environment_of_sbatch_counts(tmp_path: Path) -> None:
    done, _ = submit_all(tmp_path, FAKE_LIMIT="12:00:00", SBATCH_TIMELIMIT="1:00:00")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    ["--nodes=2 --ntasks-per-node=4", "--nodes 2 --ntasks-per-node 4", "-N2 --ntasks-per-node=4",
     "-N 2-2 --ntasks-per-node=4", "--nodes=9 -N 2 --ntasks-per-node=4"],
)  # fmt: skip
def test_the_plan_is_of_the_gpus_that_are_asked_for(options: str, tmp_path: Path) -> None:
    _, calls = submit_all(tmp_path, options)
    plans = [call for call in calls if " cmbert plan " in call]
    assert plans
    assert all(call.endswith("--gpus 8") for call in plans)


@pytest.mark.parametrize(
    "names", [{"FAKE_ROOT": "lr=3e-4"}, {"FAKE_NAME": "a\\tb"}, {"FAKE_ROOT": "跑 步", "FAKE_NAME": "集 * '合"}]
)
def test_what_is_in_the_queue_is_not_submitted_again_whatever_its_name(names: dict, tmp_path: Path) -> None:
    submit_all(tmp_path, **names)
    done, calls = submit_all(tmp_path, **names, FAKE_QUEUED="RUNNING")
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if "--test-only" not in call] == []


@pytest.mark.parametrize(("said", "code"), [("Job is no longer pending execution", 0), ("Access/permission denied", 1)])
def test_a_job_that_begins_while_its_dependency_is_set_is_let_alone(said: str, code: int, tmp_path: Path) -> None:
    submit_all(tmp_path)
    done, _ = submit_all(tmp_path, FAKE_QUEUED="PENDING", FAKE_UPDATE=said)
    assert done.returncode == code, done.stderr
    assert (said in done.stderr) == bool(code)


FROM_RAW_TEXT = (
    r"tokenizer\ttokenizer\tmissing\ttext/a\t512\nagainst\ttext/heldout\n"
    r"holdout\ta\traw/a\ta.toml\ttext/heldout/a\nholdout\tb\traw/b\tb.toml\ttext/heldout/b\n"
    r"clean\ta\traw/a\ta.toml\ttext/a\t6\nclean\tb\traw/b\tb.toml\ttext/b\t4\n"
    r"shards\theldout\theldout\ttext/heldout\tmissing\n"
)


def jobs_of(done: subprocess.CompletedProcess) -> dict[str, list[str]]:
    """Return the names of jobs, each with the names of those that it waits for."""
    rows = [line.split() for line in done.stdout.splitlines()]
    names = {number: name for name, number, *_ in rows}
    needs = {name: next((word for word in more if word.startswith("afterok:")), "") for name, _, *more in rows}
    return {name: [names[number] for number in found.split(":")[1:]] for name, found in needs.items()}


def test_a_chain_from_raw_text_holds_out_of_all_before_it_cleans_any(tmp_path: Path) -> None:
    done, _ = submit_all(tmp_path, FAKE_TEXTS=FROM_RAW_TEXT)
    assert done.returncode == 0, done.stderr
    waits = jobs_of(done)
    assert [waits[name] for name in ("holdout1-a", "holdout1-b", "holdout-b")] == [[], [], ["holdout1-b"]]
    for name, passes in (("a", 6), ("b", 4)):
        arrays = [f"clean{number}-{name}" for number in range(1, passes + 1)]
        assert [job for job in waits if re.fullmatch(rf"clean\d-{name}", job)] == arrays
        assert waits[arrays[0]] == ["holdout-a", "holdout-b"]
        assert [waits[job] for job in (*arrays[1:], f"clean-{name}")] == [[job] for job in arrays]
    assert waits["tokenizer"] == ["clean-a"]
    assert waits["preprocess-a"] == ["clean-a", "tokenizer"]
    assert waits["preprocess-heldout"] == ["holdout-a", "holdout-b", "tokenizer"]
    assert waits["merge-heldout"] == ["preprocess-heldout"]
    assert {"merge-heldout", "merge-a"} < set(waits["plan-stage1"])


def test_what_makes_a_text_of_raw_text(tmp_path: Path) -> None:
    _, calls = submit_all(tmp_path, FAKE_TEXTS=FROM_RAW_TEXT)
    tried = [call.split()[2:4] for call in calls if "--test-only" in call]
    assert tried[:2] == [["--array=0-3", "slurm/clean.sh"], ["slurm/clean.sh", "--input"]]
    cleaned = "slurm/clean.sh --input raw/b --config b.toml --output text/b --against text/heldout"
    same = [call for call in calls if cleaned in call and "--test-only" not in call]
    assert sum("--array=0-3" in call for call in same) == 4
    assert len(same) == 5
    aside = "slurm/clean.sh --input raw/a --config a.toml --heldout text/heldout/a"
    assert sum(call.endswith(aside) and "--test-only" not in call for call in calls) == 2
    train = "slurm/run.sh data_tools train-tokenizer --input text/a --output tokenizer --vocab-size 512"
    assert any(call.endswith(train) for call in calls)


def test_options_of_clean_stand_in_the_sites_facts(tmp_path: Path) -> None:
    options = "--decontaminate 'eval sets/clue' simclue"
    done, calls = submit_all(tmp_path, clean=options, FAKE_TEXTS=FROM_RAW_TEXT)
    assert [job for job in jobs_of(done) if job.startswith("clean") and job.endswith("-b")] == [
        *(f"clean{number}-b" for number in range(1, 7)),
        "clean-b",
    ]  # two passes more, over the evaluation sets
    cleaned = [call for call in calls if "--output text/a" in call]
    assert cleaned
    assert all(call.endswith("--against text/heldout --decontaminate eval sets/clue simclue") for call in cleaned)
    assert not any("--heldout" in call and "--decontaminate" in call for call in calls)


def test_a_chain_from_raw_text_is_kept_while_it_is_in_the_queue(tmp_path: Path) -> None:
    first, _ = submit_all(tmp_path, FAKE_TEXTS=FROM_RAW_TEXT)
    again, calls = submit_all(tmp_path, FAKE_TEXTS=FROM_RAW_TEXT, FAKE_QUEUED="RUNNING")
    assert again.returncode == 0, again.stderr
    assert list(jobs_of(again)) == list(jobs_of(first))
    assert all("--test-only" in call for call in calls)
