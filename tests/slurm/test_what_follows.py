"""What a job script does when a life ends: done, requeued or given up; Slurm is a stand-in, asked until it answers."""

import re
from pathlib import Path

import pytest

from tests.slurm.stand_ins import MINE, ROOT, STAGES, run_in_job


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
        ({"FAKE_PREFLIGHT": "74"}, 74, "the preflight ended with code 74; requeued", True),
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


@pytest.mark.parametrize(
    ("code", "restarts", "said", "requeued"),
    [
        (74, 0, "an input/output error, see above, that may pass; requeued\n", True),
        (74, 3, "ended with code 74\n", False),
        (137, 0, "killed, code 137; requeued\n", True),
        (2, 0, "ended with code 2\n", False),
    ],
)
def test_what_follows_one_command(code: int, restarts: int, said: str, requeued: bool, tmp_path: Path) -> None:
    variables = {"FAKE_TRAIN": str(code), "SLURM_RESTART_COUNT": str(restarts)}
    done = run_in_job(ROOT / "slurm" / "run.sh", tmp_path, "cmbert", "plan", **variables)
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout
    assert (MINE in done.stdout) == requeued


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
